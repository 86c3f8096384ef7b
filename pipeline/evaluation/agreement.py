"""How far several people agree who judged the same things: 1 is always, 0 is as often as by chance.

Legend: I items, U people (raters), C categories.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence


def fleiss_kappa(ratings_IU: Sequence[Sequence[Hashable]]) -> float:
    """Fleiss' kappa. Source: Fleiss 1971, "Measuring nominal scale agreement among many raters".

    Args:
        ratings_IU: the category that each person chose for each item; every item has equally many, at least two. Who
            chose does not matter, so people may differ from item to item.

    Returns:
        NaN where it is not defined: without items, or where all answers are of one category.

    Raises:
        ValueError: if items have unequally many ratings, or fewer than two, or one is missing (None).
    """
    counts = [Counter(ratings) for ratings in ratings_IU]
    if not counts:
        return math.nan
    num_raters = len(ratings_IU[0])
    if any(None in ratings or len(ratings) != num_raters for ratings in ratings_IU) or num_raters < 2:
        raise ValueError("Fleiss' kappa takes items that have all been judged equally often, at least twice")
    agreed = [
        sum(number * (number - 1) for number in count.values()) / (num_raters * (num_raters - 1)) for count in counts
    ]
    total = sum(counts, Counter[Hashable]())
    by_chance = sum((number / (len(counts) * num_raters)) ** 2 for number in total.values())
    if len(total) == 1:
        return math.nan
    return (math.fsum(agreed) / len(agreed) - by_chance) / (1.0 - by_chance)


def krippendorff_alpha(ratings_IU: Sequence[Sequence[Hashable | None]]) -> float:
    """Krippendorff's alpha for nominal data. Source: Krippendorff, "Computing Krippendorff's alpha-reliability", 2011.

    Args:
        ratings_IU: the category that each person chose for each item; None where a person did not judge it. Items that
            fewer than two people judged say nothing, and are left out.

    Returns:
        NaN where it is not defined: nothing was judged twice, or all answers are of one category.
    """
    units = [[rating for rating in ratings if rating is not None] for ratings in ratings_IU]
    units = [unit for unit in units if len(unit) > 1]
    total = Counter(rating for unit in units for rating in unit)
    if len(total) < 2:
        return math.nan
    num_values = sum(total.values())
    disagreed = math.fsum(_num_unequal(Counter(unit)) / (len(unit) - 1) for unit in units) / num_values
    by_chance = _num_unequal(total) / (num_values * (num_values - 1))
    return 1.0 - disagreed / by_chance


def _num_unequal(counts: Counter[Hashable]) -> int:
    """Ordered pairs of values of unlike category."""
    number = sum(counts.values())
    return number * number - sum(count * count for count in counts.values())
