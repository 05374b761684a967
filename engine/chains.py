"""How long a chain of things that refer to each other can be. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def heaviest_chain(edges: Mapping[str, Collection[str]], weight: Mapping[str, int]) -> int:
    """The most that any way along the edges weighs which comes to no place twice, or a little
    more: what refers to each other in a circle counts as a whole.

    Args:
        edges: of every place those that it leads to; all of them are places.
    """
    circle_of = _circles(edges)
    heaviest: dict[int, int] = {}
    members: dict[int, list[str]] = {}
    for place, circle in circle_of.items():
        members.setdefault(circle, []).append(place)
    # A circle has a higher number than those that it leads to.
    for circle in sorted(members):
        inside = members[circle]
        after = {circle_of[to] for place in inside for to in edges[place]} - {circle}
        heaviest[circle] = sum(weight[place] for place in inside)
        heaviest[circle] += max((heaviest[each] for each in after), default=0)
    return max(heaviest.values(), default=0)


def _circles(edges: Mapping[str, Collection[str]]) -> dict[str, int]:
    """The number of the circle (strongly connected component) that each place is in: Tarjan's
    algorithm, SIAM J. Comput. 1 (1972), without recursion."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    circle_of: dict[str, int] = {}
    open_places: list[str] = []
    num_circles = 0
    for root in edges:
        if root in index:
            continue
        index[root] = lowest[root] = len(index)
        open_places.append(root)
        way = [(root, iter(edges[root]))]
        while way:
            place, following = way[-1]
            for to in following:
                if to not in index:
                    index[to] = lowest[to] = len(index)
                    open_places.append(to)
                    way.append((to, iter(edges[to])))
                    break
                if to not in circle_of:
                    lowest[place] = min(lowest[place], index[to])
            else:
                way.pop()
                if way:
                    before = way[-1][0]
                    lowest[before] = min(lowest[before], lowest[place])
                if lowest[place] == index[place]:
                    while place not in circle_of:
                        circle_of[open_places.pop()] = num_circles
                    num_circles += 1
    return circle_of
