"""What a network refused, told in a line that says how it would be allowed. Logic only.

Unlike what denials.py tells, this was seen and not guessed. The names come from programs: those of hosts are
canonical domain names or addresses by then (world/egress/names.py), and those of programs printable.
"""

from __future__ import annotations

from substrate.session.denials import MOST, Denial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.net_record import Refusal


def net_denials(refusals: tuple[Refusal, ...]) -> tuple[Denial, ...]:
    """At most three lines; the last one counts what is left."""
    if len(refusals) <= MOST:
        return tuple(map(_tell, refusals))
    told = refusals[: MOST - 1]
    left = len(refusals) - len(told)
    more = f"the network refused {left} more: `substrate trace show last --net` lists them"
    return (*map(_tell, told), Denial(code="net_refused", text=more))


def _tell(refusal: Refusal) -> Denial:
    times = "" if refusal.count < 2 else f" ({refusal.count} times)"
    if not refusal.who:
        text = f"the network refused {refusal.what}{times}: {refusal.reason}"
    elif not refusal.others:
        text = f"{refusal.who} was refused {refusal.what}{times}: {refusal.reason}"
    else:
        more = "another" if refusal.others == 1 else f"{refusal.others} others"
        text = f"{refusal.who} and {more} were refused {refusal.what}{times}: {refusal.reason}"
    if not refusal.rule:
        text += f"; --allow {refusal.what} allows it"
    return Denial(code="net_refused", text=text)
