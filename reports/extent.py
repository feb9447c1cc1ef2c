"""How much of both sides was compared: what comes before every other sentence where it is not nearly all.

Each sentence is its text and its rule.
"""

from __future__ import annotations

from deltaw.reports.reasons import words
from deltaw.reports.text import plural, strong, whole
from deltaw.results.summary import Summary
from deltaw.types import ENOUGH, Reason, floored_percent

# Reasons that take nothing from what was compared: buffers, copies, what nobody asked for.
KNOWN_WITHOUT_A_ROW = frozenset({"not_floating", "tied_to", "excluded", "not_a_weight"})


def only_a_part(s: Summary) -> tuple[str, str] | None:
    """How much of the base was compared, where it is not nearly all."""
    c = s.coverage
    if not c.partial:
        return None
    known = KNOWN_WITHOUT_A_ROW | ({"only_in_base"} if s.adapter.types else set())  # an adapter leaves it as it is
    missing = {reason: count for reason, count in s.skipped.items() if reason not in known}
    why = ""
    if missing:
        reason = max(missing, key=lambda r: missing[r])
        why = f"; the largest group without a row is “{words(Reason(reason))}” ({plural(missing[reason], 'tensor')})"
    if not c.compared_numbers:
        return (
            f"{strong('Nothing of the base was compared')}: it has {whole(c.numbers)} numbers in "
            f"{plural(c.tensors, 'tensor')}{why}.",
            "Not one of the base's floating numbers was compared or is known to be unchanged.",
        )
    return (
        f"{strong(f'Only {floored_percent(c.share)} of the base was compared')}: {whole(c.compared_numbers)} of "
        f"{whole(c.numbers)} numbers, in {whole(c.compared_tensors)} of {plural(c.tensors, 'tensor')}{why}. "
        "What follows is about that part.",
        f"Less than {100 * ENOUGH:.0f} % of the base's floating numbers were compared or are known to be unchanged.",
    )


def more_than_the_base(s: Summary) -> tuple[str, str] | None:
    """What a fine-tuned checkpoint has more than its base, of which nothing can be said."""
    c = s.coverage
    more = c.ft_numbers - c.compared_numbers
    if s.adapter.types or c.partial or not c.numbers or more <= (1 - ENOUGH) * c.ft_numbers:
        return None
    return (
        f"{strong('The fine-tuned side holds more than the base')}: {whole(more)} of its {whole(c.ft_numbers)} numbers "
        "have no counterpart there, and nothing is said of them.",
        f"Less than {100 * ENOUGH:.0f} % of the fine-tuned side's floating numbers were compared, although nearly all "
        "of the base's were.",
    )
