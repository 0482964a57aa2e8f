"""Windows of the trained size over a larger token grid. Pure functions.

A model sees one window at a time, with what is known in it already; so memory does not grow with the image.
"""

from collections.abc import Sequence

import torch

from showo_hf.models.tiling import tile_starts


Window = tuple[slice, slice]  # rows and columns


def window_starts(first: int, last: int, size: int, window: int) -> list[int]:
    """
    Where windows begin that cover the places `first` to `last` of an axis of `size` places, overlapping by half.

    A single one is put so that what it covers lies in its middle, as far as the axis goes.
    """
    if size <= window:
        return [0]
    if last - first < window:
        middle = first - (window - (last - first + 1)) // 2
        return [min(max(0, middle), size - window)]
    return tile_starts(first, last, window, max(1, window // 2))


def plan_windows(unknown: torch.BoolTensor, window: tuple[int, int]) -> list[Window]:
    """
    Windows, row by row, that together cover every unknown token.

    Args:
        unknown (`torch.BoolTensor` of shape `(h, w)`).
        window: rows and columns of a window at most; a smaller grid is one window.
    """
    if not bool(unknown.any()):
        return []
    rows, columns = (unknown.any(dim).nonzero().flatten() for dim in (1, 0))
    tops = window_starts(int(rows[0]), int(rows[-1]), unknown.shape[0], window[0])
    lefts = window_starts(int(columns[0]), int(columns[-1]), unknown.shape[1], window[1])
    height, width = (min(most, size) for most, size in zip(window, unknown.shape, strict=True))
    windows = [(slice(top, top + height), slice(left, left + width)) for top in tops for left in lefts]
    planned, covered = [], torch.zeros_like(unknown)
    for rows_and_columns in windows:
        if bool((unknown & ~covered)[rows_and_columns].any()):
            planned.append(rows_and_columns)
            covered[rows_and_columns] = True
    return planned


def share_windows(plans: Sequence[Sequence[Window]]) -> list[tuple[Window, list[int]]]:
    """
    The windows of several images, row by row, each with the numbers of the images that have it in their plan.

    So each image goes through its own windows in its own order, whatever the others are.
    """
    shared: dict[tuple[int, int], tuple[Window, list[int]]] = {}
    for image, plan in enumerate(plans):
        for rows, columns in plan:
            shared.setdefault((rows.start, columns.start), ((rows, columns), []))[1].append(image)
    return [shared[start] for start in sorted(shared)]
