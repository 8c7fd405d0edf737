"""A plan with a refused element: the installed state, and the publication of all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clb_discovery.layout import elements
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Vip
from clb_discovery.publication.cut import Cut, cut
from clb_discovery.publication.plan import Plan, plan
from clb_discovery.publication.steps import Delete, GracePeriod, Store
from tests.publication.test_plan import PRIOR, TARGETS, Desired, comparable, fresh, pools_of, shape, taken
from tests.support.simulator import Put, State, apply, carry_out, connect, connects, history, operations, read
from tests.support.strategies import DESIRED

BY_VIRTUAL_SERVER = (Map.SERVERS, Map.ROWS, Map.OVERFLOW, Map.VIRTUAL, Map.LABELS)


def refusable(made: Plan) -> Iterator[tuple[int, Put]]:
    """Yield the elements that the kernel may have no room for, each with the number of operations before it."""
    at = 0
    for step in made.steps if made.changed else ():  # without a change, servers are only reset to zero
        if isinstance(step, Store | Delete) or (isinstance(step, GracePeriod) and at > 1):
            return  # from here on, nothing is added
        for operation in operations([step]):
            if isinstance(operation, Put) and operation.map in BY_VIRTUAL_SERVER:
                yield at, operation
            at += 1


def cut_at(state: State, made: Plan, at: int, refused: Put) -> tuple[list[State], Cut]:
    """Return all states until the writes are undone, and the result of `cut`."""
    states = [state]
    for operation in list(operations(made.steps))[:at]:
        states.append(carry_out(states[-1], operation))
    found = cut(read(state), made, refused.map, refused.key)
    assert found
    return [*states, *history(states[-1], found.steps)], found


def visible(installed: Installed, state: State) -> Installed:
    """Return the installed state without zero servers that were removed: the maps do not show that they are resting."""
    servers = tuple(key for key in installed.orphans.get(Map.SERVERS, ()) if key in state[Map.SERVERS])
    orphans = {**installed.orphans, Map.SERVERS: servers}
    return replace(installed, orphans={map_: keys for map_, keys in orphans.items() if keys})


@settings(max_examples=150)
@given(PRIOR, DESIRED, st.booleans(), st.floats(0, 1))
def test_what_is_held_after_a_refused_element_is_known_without_reading(
    state: State, desired: Desired, complete: bool, share: float
) -> None:
    """After any refusal, the maps are as `cut` returns, and connects have noticed nothing."""
    made = plan(read(state), desired, complete=complete)
    elements = list(refusable(made))
    assume(elements)
    at, refused = elements[round(share * (len(elements) - 1))]
    states, found = cut_at(state, made, at, refused)
    decoded, installed = read(states[-1]), found.carried_out.result
    assert comparable(decoded) == comparable(visible(installed, states[-1]))
    assert taken(decoded) <= taken(installed) | set(installed.resting)
    assert decoded.last_generation <= installed.last_generation
    for target in TARGETS:
        outcome = connect(state, target)
        assert all(found == outcome for found in connects(states, target))


@settings(max_examples=150)
@given(PRIOR, DESIRED, st.floats(0, 1))
def test_all_others_get_through(state: State, desired: Desired, share: float) -> None:
    """A new plan without the refused virtual server gives the same state as without the failed plan."""
    installed = read(state)
    made = plan(installed, desired, complete=True)
    elements = list(refusable(made))
    assume(elements)
    at, refused = elements[round(share * (len(elements) - 1))]
    states, found = cut_at(state, made, at, refused)
    others = {vip: server for vip, server in desired.items() if vip != found.vip}
    kept = installed.virtual.keys() & {found.vip}
    carried_out = found.carried_out.result
    gone = carried_out.virtual.keys() - others.keys() - kept
    again = plan(carried_out, others, complete=True, gone=gone)
    later = history(states[-1], again.steps)
    left = read(later[-1])
    assert left.orphans == {}
    assert {vip: one.pool for vip, one in left.virtual.items() if vip not in kept} == pools_of(others)
    if kept:
        assert left.virtual[found.vip] == installed.virtual[found.vip]
    assert shape(apply(later[-1], plan(again.result, desired, complete=True).steps)) == shape(fresh(desired))


@given(PRIOR, DESIRED)
def test_the_owner_of_each_element_is_named(state: State, desired: Desired) -> None:
    """A row, label, server or virtual server belongs to one virtual server of the plan."""
    installed = read(state)
    made = plan(installed, desired, complete=True)
    for _, refused in refusable(made):
        found = cut(installed, made, refused.map, refused.key)
        assert found
        assert found.vip in desired
        if refused.map is Map.LABELS:
            assert elements.pack_vip(found.vip) == refused.key
        if refused.map is Map.VIRTUAL:
            assert elements.pack_vip(found.vip) == elements.unpack_virtual(refused.value).vip


def test_what_belongs_to_all_has_no_owner() -> None:
    """The filter belongs to all virtual servers, so none can be set aside for it."""
    made = plan(Installed(), {}, complete=True)
    assert cut(made.result, made, Map.FILTER, elements.pack_index(0)) is None
    unknown = elements.pack_vip(Vip(*_NOWHERE))
    assert cut(made.result, made, Map.LABELS, unknown) is None


_NOWHERE = next(iter(TARGETS))
