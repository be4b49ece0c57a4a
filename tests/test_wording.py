"""Texts on pages, in REST, errors, logs, comments and docstrings are plain English, with one word for one thing."""
import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'netbox_celery'

#: What must not come back, and what to write instead. Patterns ignore case, unless `(?-i:...)` says otherwise.
RULES = (
    # House rules
    (r'(?:^|[.:;!?] )(?-i:It)\b', 'name the subject: "The run...", "The schedule..."'),
    (r'\b(?:some|no)body\b', '"a user", "another user", "no user"'),
    (r'\banew\b', '"again", "new"'),
    (r'\bmay not\b', '"cannot", "is not allowed to", "no permission to"'),
    (r'\bgone\b', '"deleted", "no longer ..."'),
    (r'\bat once\b', '"immediately", "at the same time"'),
    (r'\bwhat becomes of\b', '"how to handle", "what to do if"'),
    (r'\bma(?:d|k)es? up for\b', '"catch up", "replace"'),
    (r'(?<!there )\b(?:is|are|was|were) no\b(?! (?:longer|more)\b)', '"is not a valid ...", "is not ..."'),
    (r'\bended\b', '"finished"'),
    (r'\b(?:begins?|began|begun)\b', '"start"'),
    # One word for one thing
    (r'\bresults?\b', '"run", for a run; "result" is the value that a task returned'),
    (r'\bunder way\b', '"active", "in progress"'),
    (r'\bin line\b(?! (?:\{|\d))', '"queued"'),
    (r'\btak(?:e|es|en|ing) (?:\w+ ){0,2}over\b', '"take ownership"'),
    (r'\bknows? no\b', '"is not registered"'),
    # Phrases from before the house rules
    (r'\bclock hangs\b', '"time zone in which ... is evaluated"'),
    (r'\bthe only run\b', '"the run"'),
    (r'\bwhat is shown\b', '"display name"'),
    (r'\bwhose name\b', '"the user that ... acts as"'),
    (r'\bby default (?:what|as|at|net)', '"defaults to ..."'),
    (r'\bso many\b', '"this many", "a number of"'),
    (r'\b(?:side by side|again and again|never again)\b', '"concurrently", "at a fixed interval", "once"'),
    (r'\bwho says\b', '"where ... is defined"'),
    (r'\bsays? what\b', '"defines"'),
    (r'\btakes? note\b', '"checks"'),
    (r'\bleft out\b', '"skipped", "N more"'),
    (r'\bgo(?:es)? on\b', '"continue"'),
    (r'\b(?:stays?|left) as (?:it is|they are)\b', '"is not affected"'),
    (r'\bleft alone\b', '"not affected"'),
    (r'\bit would never be due\b', '"must be in the future", "never matches"'),
    (r'\bnot due any more\b', '"no further runs"'),
    (r'\bholds what\b', '"contains unsupported values"'),
    (r'\bno (?:line|entry) matches\b', '"no matching entries"'),
    (r'\b(?:that|those|which) you may\b', '"that you are allowed to", "no permission"'),
    (r'\bof all \S* ?runs\b', '"based on N runs"'),
    (r'\bnot kept\b', '"not stored"'),
    (r'\bsuch (?:a |an )?(?:queue|object|task|run|schedule|worker)\b', '"Queue not found"'),
    (r'\byours already\b', '"You already own it"'),
    (r'\bact(?:s)? as nobody\b', '"no user"'),
    (r'\bis absent\b', '"is not registered"'),
    (r'\bcan tell\b', '"is invalid"'),
    (r'\bshall\b', '"will", "should", "must"'),
    # Labels
    (r'^(?-i:Kind)$', '"Type"'),
    (r'^runs act as$', '"Runs as"'),
    (r'^because of$', '"Caused by"'),
    (r'^not before$', '"Earliest start"'),
    (r'^last due$', '"Last scheduled time"'),
    (r'^most missed runs$', '"Catch-up limit"'),
    (r'^from now$', '"In"'),
    (r'^in words$', '"Schedule"'),
    (r'^(?-i:Present)$', '"Registered"'),
    (r'^alive$', '"Online"'),
    (r'^has not stopped$', '"Running"'),
)
RULES = tuple((re.compile(pattern, re.IGNORECASE), better) for pattern, better in RULES)

#: What is right where it stands, and why. It is taken out of a text before the rules are applied.
ALLOWED = tuple(re.compile(pattern, re.IGNORECASE) for pattern in (
    r'\bresult[ _]backend\b',  # Celery's term
    r'\bcelery results?\b',  # the model's name, which permissions and NetBox's own pages show
    r'^result$',  # the field and the panel with what a task returned
    r'\bthe result as json\b|\bholds more of the result\b|\bearlier result of\b',  # likewise
    r'\bresults cannot be read from rows\b',  # likewise
    r'\b(?:arguments|data|error)(?:,| and| or)? (?:and |or )?(?:the )?results?\b',  # likewise, in enumerations
    r"\b(?:the|its|a|task's|whose) result (?:of a task|is|was|must|cannot|that the task)\b",  # likewise
    r'\bwait(?:s|ing)? for (?:a|the|its) result\b',  # likewise
))

TRANSLATED = {'_', 'gettext', 'gettext_lazy', 'gettext_noop', 'ngettext', 'ngettext_lazy', 'pgettext', 'pgettext_lazy'}
#: Arguments, and attributes of classes, whose text a person reads.
SHOWN = {
    'default_detail', 'description', 'empty_label', 'help', 'help_text', 'label', 'message', 'title', 'verbose_name',
    'verbose_name_plural',
}
#: How a line of a log, or the error of a run, starts.
SENTENCE = re.compile(r"[A-Z][a-z']*[: ].* ")


def literal(node):
    """Return the text of a literal, with `{}` for what is filled in, or None."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return ''.join('{}' if (text := literal(value)) is None else text for value in values)
        case ast.BinOp(left=left, op=ast.Mod()):
            return literal(left)
        case ast.Call(func=ast.Attribute(value=value, attr='format')):
            return literal(value)
    return None


def in_python(source):
    """Yield line and text: translated strings, labels and helps, messages of exceptions and of logs."""
    for node in ast.walk(ast.parse(source)):
        shown = []
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args, keywords=keywords):
                if name in TRANSLATED:
                    shown += args[1:] if name.startswith('pgettext') else args
                shown += [keyword.value for keyword in keywords if keyword.arg in SHOWN]
                # Lines of logs, and errors of runs: whatever reads like a sentence
                shown += [arg for arg in args if SENTENCE.match(literal(arg) or '')]
            case ast.Raise(exc=ast.Call(args=args)):
                # A validation error may come as a dict by field, or as a list
                for inner in [inner for arg in args for inner in ast.walk(arg)]:
                    match inner:
                        case ast.Dict(values=parts) | ast.List(elts=parts):
                            shown += parts
                shown += args
            case ast.ClassDef(body=body):
                shown += [line.value for line in body if isinstance(line, ast.Assign)
                          and isinstance(line.targets[0], ast.Name) and line.targets[0].id in SHOWN]
        for part in dict.fromkeys(shown):
            if text := literal(part):
                yield part.lineno, text


def in_template(source):
    """Yield line and text: translated strings, and what stands between the tags."""
    def blank(match):
        # Line numbers stay right
        return '\n' * match.group().count('\n')

    source = re.sub(r'\{#.*?#\}|\{% comment.*?endcomment %\}|<script.*?</script>', blank, source, flags=re.DOTALL)
    translated = r'\{% (?:trans|translate) "([^"]*)"|\{% blocktrans(?:late)?[^%]*%\}(.*?)\{% endblocktrans(?:late)? %\}'
    for match in re.finditer(translated, source, re.DOTALL):
        for text in (match[1] or match[2]).split('{% plural %}'):
            yield source[:match.start()].count('\n') + 1, text
    for match in re.finditer(r'\b(?:title|placeholder|aria-label|alt)="([^"{]+)"', source):
        yield source[:match.start()].count('\n') + 1, match[1]
    plain = re.sub(translated, blank, source, flags=re.DOTALL)
    plain = re.sub(r'\{%.*?%\}|\{\{.*?\}\}', blank, plain, flags=re.DOTALL)
    plain = re.sub(r'<[^>]*>', blank, plain)
    for number, text in enumerate(plain.splitlines(), start=1):
        if re.search(r'[A-Za-z]{2}', text):
            yield number, text


def shown_texts():
    """Yield place and text of all that the package shows to people."""
    for path in sorted(PACKAGE.rglob('*')):
        if path.suffix in ('.py', '.html') and 'migrations' not in path.parts:
            for line, text in (in_python if path.suffix == '.py' else in_template)(path.read_text()):
                yield f'{path.relative_to(PACKAGE.parent)}:{line}', text


def faults(text):
    """Return the advice of each rule that a text breaks."""
    # What is filled in is no wording of ours
    text = re.sub(r'\{\{.*?\}\}|\{[^{}]*\}|%\(\w+\)[sd]', '{}', text)
    text = ' '.join(text.split())
    for pattern in ALLOWED:
        text = pattern.sub('', text)
    return [better for pattern, better in RULES if pattern.search(text)]


def test_wording():
    found = [f'{place}: {text.strip()!r}: {better}' for place, text in shown_texts() for better in faults(text)]
    assert not found, '\n'.join(['', *found])


#: What must not come back in comments and docstrings, either: words that hide who does what.
UNCLEAR = re.compile(
    r'\b(?:whoever|anew|(?:some|no|any)body|at once|what becomes of|makes? way|made up for|under way|told|shall'
    r'|beg(?:ins?|an)|side by side|go(?:es)? on|(?:is|are) (?:gone|away))\b',
    re.IGNORECASE
)


def in_comments(source):
    """Yield line and text of comments and docstrings, without code in backticks."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], re.sub('`[^`]*`', '', token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, re.sub('`[^`]*`', '', text)


def test_comments():
    found = [
        f'{path.relative_to(PACKAGE.parent)}:{line}: {match[0]!r}' for path in sorted(PACKAGE.rglob('*.py'))
        for line, text in in_comments(path.read_text()) if (match := UNCLEAR.search(' '.join(text.split())))
    ]
    assert not found, '\n'.join(['', *found])


def test_places_of_comments():
    source = "'''A `no` b.'''\nx = 1  # C\n\n\ndef f():\n    '''D.'''\n    return 'no'\n"
    assert sorted(in_comments(source)) == [(1, 'A  b.'), (2, '# C'), (6, 'D.')]


def test_all_kinds_of_texts_are_read():
    """The search finds labels, helps, choices, exceptions and templates, and not just a few of them."""
    places = [place for place, __ in shown_texts()]
    assert len(places) > 900
    for part in ('engine/', 'forms/', 'management/', 'models/', 'panels/', 'templates/', 'views/', 'api/'):
        assert any(f'netbox_celery/{part}' in place for place in places), part


def test_places_in_python():
    source = '''
class Form:
    help = 'A'
    field = Field(_('B'), help_text=f'C {x}', label='D', name='no')

    def clean(self):
        """No."""
        log.info('K %s L M', 'no')
        raise Error({'field': 'E'}, _('F {x}').format(x=1), 'G %s' % x) from None
        ngettext('H', 'I', 2), pgettext('no', 'J')
'''
    assert sorted(text for __, text in in_python(source)) == [
        'A', 'B', 'C {}', 'D', 'E', 'F {x}', 'G %s', 'H', 'I', 'J', 'K %s L M',
    ]


def test_places_in_templates():
    source = '''{% load i18n %}{# no #}
<a href="no" title="Ab {{ no }}">{% trans "Cd" %}</a>
{% blocktrans trimmed count n=no %}Ef{% plural %}Gh {{ n }}{% endblocktrans %}
<b aria-label="Ij">Kl</b>{{ no }}
'''
    assert sorted((line, text.strip()) for line, text in in_template(source)) == [
        (2, 'Cd'), (3, 'Ef'), (3, 'Gh {{ n }}'), (4, 'Ij'), (4, 'Kl'),
    ]


@pytest.mark.parametrize('text', [
    'It ran longer than its time limit', 'Disabled. It would run at:', 'Somebody cancelled it',
    'Nobody owns the schedule', 'The task is started anew', 'Its owner may not run the task', 'The owner is gone.',
    'Ends the process at once',
    'What becomes of missed runs', 'Missed runs are not made up for', 'One run makes up for all of them',
    '{value} is no crontab', 'Runs that have ended', 'The run has not begun', 'A run that begins later',
    'No results found', 'Delete {count} results', 'Show results of {result}', 'A run is under way',
    'Take this schedule over?',
    'The worker knows no task of this name', 'Where the clock hangs that the crontab goes by', 'What is shown',
    'Again and again, so many seconds apart', 'Only those that you may run', 'Active runs go on.', 'Not kept',
    'There is no such queue', 'Last due', 'Kind', 'Present', 'Results',
])
def test_bad_texts(text):
    assert faults(text)


@pytest.mark.parametrize('text', [
    'Display name; defaults to the task name', 'Date and time of the run', 'Waiting for its start time',
    'Failed; will retry', 'Joined to an identical active run', '{run} has already finished ({status})',
    'One run replaces all missed runs', 'Finished runs are not affected', 'Take ownership?', 'You already own it.',
    'Runs now as you. The schedule is not affected.', '{result} is already active (same key)', 'Queue not found',
    'Unexpected "{text}" in line {line}', 'The earlier result of %s could not be deleted',
    '"61" is not a valid minute; expected 5 fields, got 4', 'Defined in code, but is no longer there', 'Result',
    'The result backend does not answer', 'Celery results', 'Type of commit', 'No user; changes are not logged',
    'What to do if the previous run is still in progress', 'There are no runs yet', 'Catch-up limit',
    '{result} of {begin}',
])
def test_good_texts(text):
    assert faults(text) == []
