"""Windows of the trained size over a larger token grid. Pure functions.

The model sees one window at a time, including the tokens that are already known there. So memory does not grow with the
image.
"""

from collections.abc import Sequence

import torch

from showo_hf.models.tiling import tile_starts


Window = tuple[slice, slice]  # rows and columns


def window_starts(first: int, last: int, size: int, window: int) -> list[int]:
    """
    Compute the starts of windows that cover the positions `first` to `last` of an axis, overlapping by at least half.

    Fewer positions than a window has get one window, centred on them as far as the axis allows. For others, the first and
    the last window also contain the known tokens beside these positions: up to a quarter of a window at each end.

    Args:
        size (`int`): length of the axis.
        window (`int`): length of a window.
    """
    if size <= window:
        return [0]
    if last - first + 1 < window:
        middle = first - (window - (last - first + 1)) // 2
        return [min(max(0, middle), size - window)]
    stride, margin = max(1, window // 2), window // 4
    begin, end = max(0, first - margin), min(size, last + 1 + margin)
    if end == last + 1:
        return tile_starts(begin, last, window, stride)
    # At equal distances, so that the window before the last one ends before `last`, and the last one draws it. (A single
    # window at the beginning of the axis is an exception: it draws everything.)
    room = end - begin - window
    count = -(-room // stride)
    return [begin + number * room // count for number in range(count + 1)]


def plan_windows(masked: torch.BoolTensor, window: tuple[int, int]) -> list[Window]:
    """
    Plan windows that cover every masked token, in row-major order.

    Args:
        masked (`torch.BoolTensor` of shape `(h, w)`).
        window (`tuple[int, int]`): maximum number of rows and columns of a window. A smaller grid is one window.
    """
    if not bool(masked.any()):
        return []
    rows, columns = (masked.any(dim).nonzero().flatten() for dim in (1, 0))
    tops = window_starts(int(rows[0]), int(rows[-1]), masked.shape[0], window[0])
    lefts = window_starts(int(columns[0]), int(columns[-1]), masked.shape[1], window[1])
    height, width = (min(most, size) for most, size in zip(window, masked.shape, strict=True))
    windows = [(slice(top, top + height), slice(left, left + width)) for top in tops for left in lefts]
    planned, covered = [], torch.zeros_like(masked)
    for rows_and_columns in windows:
        if bool((masked & ~covered)[rows_and_columns].any()):
            planned.append(rows_and_columns)
            covered[rows_and_columns] = True
    return planned


def share_windows(plans: Sequence[Sequence[Window]]) -> list[tuple[Window, list[int]]]:
    """
    Merge the plans of several images: each distinct window, in row-major order, with the indices of its images.

    Each image goes through its own windows in its own order, whatever the other plans are.
    """
    shared: dict[tuple[int, int], tuple[Window, list[int]]] = {}
    for image, plan in enumerate(plans):
        for rows, columns in plan:
            shared.setdefault((rows.start, columns.start), ((rows, columns), []))[1].append(image)
    return [shared[start] for start in sorted(shared)]
