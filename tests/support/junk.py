"""Damage to the maps that comes from foreign programs, and from no publication or crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hypothesis import strategies as st

from clb_discovery.layout import address_filter, elements, structs
from clb_discovery.layout.chains import chain_of
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Protocol, RealServer, Vip
from tests.support.simulator import Put, Remove, State, carry_out, rows_in
from tests.support.strategies import ADDRESS, FEW_VIPS, few_real_servers

Draw = Callable[[st.SearchStrategy[Any]], Any]

_KEYS: Final = st.sampled_from(FEW_VIPS).map(elements.pack_vip)
_GENERATION: Final = st.integers(0, 12)
_MOST: Final = 5
_INDEX: Final = st.integers(0, _MOST)
_LINK: Final = st.integers(0, 8) | st.sampled_from([structs.VIRTUAL_ELEMENTS - 1, structs.VIRTUAL_ELEMENTS, 2**32 - 1])
_SERVER: Final = st.sampled_from([*range(12), structs.MAX_SERVERS - 1, structs.MAX_SERVERS, 2**32 - 1])


@st.composite
def damaged(draw: Draw, states: st.SearchStrategy[State]) -> State:
    """Return states with up to eight elements lost, invented or overwritten."""
    state: State = draw(states)
    for damage in draw(st.lists(st.sampled_from(_DAMAGES), max_size=8)):
        operation = damage(draw, state)
        if operation is not None:
            state = carry_out(state, operation)
    return state


def _lost(draw: Draw, state: State) -> Remove | None:
    map_ = draw(st.sampled_from([Map.OVERFLOW, Map.LABELS]))
    return Remove(map_, draw(st.sampled_from(sorted(state[map_])))) if state[map_] else None


def _filter(draw: Draw, _state: State) -> Put:
    index, _ = divmod(address_filter.bit_of(draw(ADDRESS)), 64)
    return Put(Map.FILTER, elements.pack_index(index), draw(st.binary(min_size=8, max_size=8)))


def _label(draw: Draw, _state: State) -> Put:
    text = draw(st.binary(max_size=20))
    return Put(Map.LABELS, draw(_KEYS), text.ljust(structs.LABEL.size, b"\0"))


def _server(draw: Draw, _state: State) -> Put:
    element = draw(st.sampled_from([elements.NEW_SERVER, b"\xff" * structs.SERVER.size]))
    return Put(Map.SERVERS, elements.pack_index(draw(_INDEX | st.integers(0, 30))), element)


def _virtual(draw: Draw, _state: State) -> Put:
    small = st.integers(0, 3)
    row = draw(_INDEX | st.sampled_from([structs.OVERFLOWS, structs.ROWS - 1, structs.ROWS, 2**32 - 2]))
    head = (draw(_KEYS), draw(_LINK), draw(_GENERATION), row, draw(_INDEX), draw(_INDEX))
    rest = (draw(small) for _ in elements.Virtual._fields[len(head) :])
    virtual = elements.Virtual(*head, *rest)._replace(refusal=draw(_SERVER))
    return Put(Map.VIRTUAL, elements.pack_index(draw(_INDEX)), elements.pack_virtual(virtual))


def _link(draw: Draw, _state: State) -> Put:
    hashed = draw(_KEYS.map(chain_of) | st.integers(0, 2**structs.CHAIN_BITS - 1))
    return Put(Map.CHAINS, elements.pack_index(hashed), elements.pack_index(draw(_LINK)))


def _slot(draw: Draw, state: State) -> Put:
    small = st.integers(0, 3)
    slot = elements.Slot(_member(draw), *(draw(small) for _ in elements.Slot._fields[1:]))._replace(
        server=draw(_SERVER)
    )
    generation = draw(_GENERATION)
    (row,) = elements.pack_rows(generation, [slot])
    if draw(st.booleans()) or rows_in(state) <= _MOST:
        return Put(Map.OVERFLOW, elements.pack_place(generation, draw(_INDEX)), row)
    return Put(Map.ROWS, elements.pack_index(draw(_INDEX)), row)


def _member(draw: Draw) -> bytes:
    key = draw(_KEYS)
    server: RealServer = draw(few_real_servers(ipv4=draw(st.booleans())))
    return elements.refusal(key) if draw(st.booleans()) else elements.pack_member(key, server)


def _unheard_of(draw: Draw, _state: State) -> Put:
    vip = Vip(draw(ADDRESS), draw(st.integers(0, 65535)), draw(st.sampled_from(Protocol)))
    head = (elements.pack_vip(vip), draw(_LINK), draw(_GENERATION), draw(_INDEX), 1, 1)
    rest = [0] * (len(elements.Virtual._fields) - len(head))
    virtual = elements.Virtual(*head, *rest)._replace(refusal=draw(_SERVER))
    return Put(Map.VIRTUAL, elements.pack_index(draw(_INDEX)), elements.pack_virtual(virtual))


def _senseless(draw: Draw, state: State) -> Put:
    """Write a virtual server with a protocol or padding that no program looks up."""
    key = draw(_KEYS)[:18] + draw(st.binary(min_size=2, max_size=2).filter(lambda end: end not in _SENSIBLE))
    put = _virtual(draw, state)
    return put._replace(value=key + put.value[len(key) :])


def _skewed(draw: Draw, state: State) -> Put | None:
    """Change four bytes of an existing row or virtual server."""
    map_ = draw(st.sampled_from([Map.ROWS, Map.OVERFLOW, Map.VIRTUAL]))
    if not state[map_]:
        return None
    key = draw(st.sampled_from(sorted(state[map_])))
    value = state[map_][key]
    at = draw(
        st.sampled_from([at for at in range(0, len(value), 4) if map_ is not Map.VIRTUAL or at not in _NOT_SKEWED])
    )
    return Put(map_, key, value[:at] + draw(st.binary(min_size=4, max_size=4)) + value[at + 4 :])


_NOT_SKEWED: Final = range(*(structs.VIRTUAL.offsets()[name][0] for name in ("generation", "row")))
"""Generations stay small, so that there is a next one."""
_SENSIBLE: Final = tuple(bytes([protocol, 0]) for protocol in Protocol)
_DAMAGES: Final = (_lost, _filter, _label, _server, _virtual, _link, _slot, _unheard_of, _senseless, _skewed)
