"""Permissions of the actions that are neither view, add, change nor delete."""
from netbox.api.authentication import TokenPermissions

__all__ = (
    'token_permission',
)


def token_permission(action):
    """Return a permission class for a viewset action of that name.

    A POST needs the model's permission `action`, where it would need `add` otherwise, and a token that may write.
    """
    return type(f'Token{action.title()}Permission', (TokenPermissions,), {
        'perms_map': {**TokenPermissions.perms_map, 'POST': [f'%(app_label)s.{action}_%(model_name)s']},
    })
