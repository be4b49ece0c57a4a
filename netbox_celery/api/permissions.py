"""Permissions of actions other than view, add, change and delete."""
from netbox.api.authentication import TokenPermissions

__all__ = (
    'token_permission',
)


def token_permission(action):
    """Return a permission class for a viewset action.

    A POST requires the model's permission `action`, instead of `add`, and a token with write access.
    """
    return type(f'Token{action.title()}Permission', (TokenPermissions,), {
        'perms_map': {**TokenPermissions.perms_map, 'POST': [f'%(app_label)s.{action}_%(model_name)s']},
    })
