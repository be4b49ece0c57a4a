"""The form that filters the log of a run."""
from django import forms
from django.utils.translation import gettext_lazy as _

from ..choices import LogLevelChoices
from ..reading.log import LogFilter

__all__ = (
    'LogForm',
)


class LogForm(forms.Form):
    """The controls above a log. The values come from the URL, so invalid ones must do no harm."""
    level = forms.TypedChoiceField(
        label=_('Level'),
        coerce=int,
        empty_value=None,
        required=False
    )
    grouping = forms.CharField(
        label=_('Group'),
        required=False,
        max_length=100,
        widget=forms.TextInput(attrs={
            'autocomplete': 'off', 'list': 'celery-log-groups', 'placeholder': _('All groups'),
        })
    )
    q = forms.CharField(
        label=_('Search log'),
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs={'type': 'search', 'autocomplete': 'off', 'placeholder': _('Search log')})
    )

    def __init__(self, data=None):
        super().__init__(data, auto_id='celery-log-%s')
        self.fields['level'].choices = [
            ('', _('All levels')),
            *(
                (choice.value, _('{level} and above').format(level=choice.label)) for choice in LogLevelChoices.CHOICES
                if choice.value != LogLevelChoices.LEVEL_DEBUG
            )
        ]
        self.fields['level'].widget.attrs['class'] = 'celery-log-filter no-ts'
        self.fields['grouping'].widget.attrs['class'] = 'celery-log-filter'

    @property
    def following(self) -> bool:
        """Whether the reader follows the log."""
        return 'follow' in self.data

    @property
    def wanted(self) -> LogFilter:
        """The `LogFilter`. Invalid values filter nothing."""
        self.is_valid()
        data = self.cleaned_data
        return LogFilter(
            min_level=data.get('level'),
            groupings=(data['grouping'],) if data.get('grouping') else (),
            search=data.get('q', ''),
        )
