"""The tree of a workflow's runs, limited to those that the reader may view.

The parent of a run is the run that started it. A run that the reader may not view is left out, and the runs that it
started move up to its nearest visible ancestor. Consecutive runs, as in a chain, are not indented; the tree branches
only where a run starts several others. Siblings of one group are kept together, so that a page can fold hundreds of
them into one line.
"""
from collections.abc import Container
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from users.models import User

from ..choices import ResultStatusChoices
from ..engine.store.times import moment
from ..engine.workflows.family import members
from ..models import CeleryResult

__all__ = (
    'MAX_RUNS',
    'Group',
    'Node',
    'Workflow',
    'is_workflow',
    'load_workflow',
)

#: Maximum number of runs that are read.
MAX_RUNS = 5000
#: Minimum number of siblings for a group to be folded.
FOLD_FROM = 8
#: Columns that the tree and the timeline need.
COLUMNS = (
    'id', 'task_id', 'celery_name', 'name', 'status', 'reason', 'error', 'parent_id', 'root_id', 'group_id', 'attempt',
    'attempts', 'created', 'scheduled', 'started', 'completed', 'cancelled',
)


@dataclass
class Node:
    """A run in the tree."""
    run: Any
    #: The nearest ancestor that the reader may view.
    parent: 'Node | None' = None
    children: 'list[Node]' = field(default_factory=list)
    #: Level of indentation.
    depth: int = 0

    @property
    def group_key(self):
        """The key that siblings of one group share, or `None`."""
        if self.run.group_id:
            return str(self.run.group_id)
        if self.parent is None and self.run.root_id != self.run.task_id:
            return str(self.run.root_id)  # the first of several chains
        return None


@dataclass
class Group:
    """Siblings of one group, folded into a line or not."""
    key: str
    nodes: list[Node]
    is_open: bool = False
    depth: int = 0

    @property
    def name(self):
        names = {node.run.name for node in self.nodes}
        return names.pop() if len(names) == 1 else ', '.join(sorted(names)[:3]) + (', …' if len(names) > 3 else '')

    @property
    def statuses(self):
        """Tuples of status, label, color and number of runs, for each status that occurs."""
        count: dict[str, int] = {}
        for node in self.nodes:
            count[node.run.status] = count.get(node.run.status, 0) + 1
        labels = dict(ResultStatusChoices)
        return [
            (status, labels[status], ResultStatusChoices.colors.get(status), count[status]) for status in labels
            if status in count
        ]


@dataclass
class Workflow:
    """The runs of a workflow that a reader may view."""
    root_id: object
    #: Nodes in the order of the tree, each before its descendants.
    nodes: list[Node]
    roots: list[Node]
    #: Number of runs that the reader may not view.
    hidden: int
    #: Whether the workflow has more than `MAX_RUNS` runs.
    is_cut: bool
    #: When it was read.
    now: datetime

    @property
    def is_finished(self):
        return all(node.run.is_finished for node in self.nodes)

    @property
    def started(self):
        return min((node.run.created for node in self.nodes), default=self.now)

    @property
    def finished(self):
        """When the last run finished; the current time while one is active."""
        if not self.is_finished:
            return self.now
        return max((node.run.completed or node.run.created for node in self.nodes), default=self.now)

    @property
    def duration(self):
        return max(self.finished - self.started, timedelta())


def is_workflow(result: CeleryResult) -> bool:
    """Whether a run belongs to a workflow with other runs."""
    return members(result).order_by()[:2].count() > 1


def load_workflow(result: CeleryResult, user: User) -> Workflow:
    """Return the workflow of a run, limited to what a user may view, in two queries for any number of runs.

    Args:
        result: A `CeleryResult` of the workflow.
        user: The reader.
    """
    everything = members(result).order_by('pk')
    runs = list(everything.only(*COLUMNS)[:MAX_RUNS + 1])
    is_cut, runs = len(runs) > MAX_RUNS, runs[:MAX_RUNS]
    visible = set(everything.restrict(user, 'view').values_list('pk', flat=True)[:MAX_RUNS + 1])
    roots = _build_tree(runs, visible)
    nodes = list(_walk(roots))
    return Workflow(
        root_id=result.root_id or result.task_id, nodes=nodes, roots=roots, hidden=len(runs) - len(nodes),
        is_cut=is_cut, now=timezone.now()
    )


def _build_tree(runs, visible):
    """Return the nodes without a parent, with their descendants attached."""
    by_id = {run.task_id: run for run in runs}
    nodes = {run.task_id: Node(run) for run in runs if run.pk in visible}
    roots: list[Node] = []
    for node in nodes.values():
        node.parent = _nearest(node.run, by_id, nodes)
        (node.parent.children if node.parent else roots).append(node)
    return roots


def _nearest(run, by_id, nodes):
    """Return the node of the nearest visible ancestor of a run. Parents are older, so there are no cycles."""
    while (above := by_id.get(run.parent_id)) is not None and above.pk < run.pk:
        if above.task_id in nodes:
            return nodes[above.task_id]
        run = above
    return None


def _walk(roots):
    """Yield the nodes in the order of the tree, and set their indentation."""
    waiting = list(reversed(roots))
    while waiting:
        node = waiting.pop()
        if node.parent is not None:
            node.depth = node.parent.depth + (len(node.parent.children) > 1)
        yield node
        waiting.extend(reversed(node.children))


# The page

def rows(workflow: Workflow, opened: Container[str]) -> list[Node | Group]:
    """Return the lines of a workflow's page in order: nodes, and groups in place of their nodes.

    Args:
        workflow: The `Workflow`.
        opened: Keys of the expanded groups.
    """
    shown: list[Node | Group] = []
    waiting = [*reversed(_folded(workflow.roots, opened))]
    while waiting:
        item = waiting.pop()
        shown.append(item)
        if isinstance(item, Node):
            waiting.extend(reversed(_folded(item.children, opened)))
        elif item.is_open:
            for node in item.nodes:
                node.depth += 1
            waiting.extend(reversed(item.nodes))
        else:
            # Their descendants, such as the body of a chord, are not folded with them
            rest = [child for node in item.nodes for child in node.children]
            waiting.extend(reversed(_folded(rest, opened)))
    return shown


def _folded(siblings, opened):
    """Return siblings, with those of each larger group replaced by a `Group`."""
    groups: dict[str | None, list[Node]] = {}
    for node in siblings:
        groups.setdefault(node.group_key, []).append(node)
    items: list[Node | Group] = []
    done = set()
    for node in siblings:
        key = node.group_key
        if key is None or len(groups[key]) < FOLD_FROM:
            items.append(node)
        elif key not in done:
            done.add(key)
            items.append(Group(key, groups[key], is_open=key in opened, depth=node.depth))
    return items


def bars(workflow: Workflow, run: CeleryResult) -> list[dict[str, str]]:
    """Return the bars of a run in the timeline: dicts with `kind`, and `left` and `width` in percent."""
    length = max(workflow.duration.total_seconds(), 0.001)

    def bar(kind, start, end):
        left = 100 * (start - workflow.started).total_seconds() / length
        width = 100 * (end - start).total_seconds() / length
        return {'kind': kind, 'left': f'{max(0, min(left, 100)):.3f}', 'width': f'{max(0, min(width, 100)):.3f}'}

    end = run.completed or workflow.now
    found, before = [], run.created
    for attempt in run.attempts:
        start = moment(attempt.get('started')) or before
        ended = moment(attempt.get('ended')) or end
        if ended < run.created:
            continue  # of an earlier call with the same task ID
        if start > before:
            found.append(bar('wait', before, start))
        found.append(bar(_kind(run, attempt), start, max(start, ended)))
        before = ended
    if not run.is_finished and run.status != ResultStatusChoices.STATUS_RUNNING or not found:
        found.append(bar('wait', before, max(before, end)))
    return found


def _kind(run, attempt):
    """Return the kind of an attempt's bar: the status of the run for the last attempt, `retrying` for earlier ones."""
    return 'retrying' if attempt is not run.attempts[-1] else run.status


def span(workflow: Workflow, nodes: list[Node]) -> dict[str, str]:
    """Return the bar of a group, from the creation of its first run to the end of its last."""
    length = max(workflow.duration.total_seconds(), 0.001)
    start = min(node.run.created for node in nodes)
    end = max(node.run.completed or workflow.now for node in nodes)
    return {
        'kind': 'group', 'left': f'{100 * (start - workflow.started).total_seconds() / length:.3f}',
        'width': f'{min(100, 100 * (end - start).total_seconds() / length):.3f}',
    }
