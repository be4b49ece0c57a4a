"""Conditions on runs that the models need, for their indexes, and that statements need to be served by these."""
from django.db.models import F, Q

__all__ = (
    'HAS_OTHER_ROOT',
    'IN_GROUP',
)

#: Runs that are not the root of their own workflow; the condition of the index by which a workflow is found.
HAS_OTHER_ROOT = Q(root_id__lt=F('task_id')) | Q(root_id__gt=F('task_id'))
#: The members of a group within a workflow, as SQL that this index serves.
IN_GROUP = 'root_id = %(root_id)s AND (root_id < task_id OR root_id > task_id) AND group_id = %(group_id)s'
