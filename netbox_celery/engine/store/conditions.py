"""Conditions on runs that the models' indexes and the statements that use these indexes have in common."""
from django.db.models import F, Q

__all__ = (
    'HAS_OTHER_ROOT',
    'IN_GROUP',
)

#: Runs that are not the root of their own workflow: the condition of the index that finds the runs of a workflow.
HAS_OTHER_ROOT = Q(root_id__lt=F('task_id')) | Q(root_id__gt=F('task_id'))
#: The members of a group within a workflow, as SQL that can use this index.
IN_GROUP = 'root_id = %(root_id)s AND (root_id < task_id OR root_id > task_id) AND group_id = %(group_id)s'
