"""What a network refused, told in a line that says how it would be allowed. Logic only.

Unlike what denials.py tells, this was seen and not guessed. The names come from programs: those of hosts are
canonical domain names or addresses by then (world/egress/names.py), and those of programs printable.
"""

from __future__ import annotations

from substrate.session.denials import MOST, Denial, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.net_record import Refusal


def net_denials(refusals: tuple[Refusal, ...], used_up: int = 0) -> tuple[Denial, ...]:
    """At most three lines; the last one counts what is left. `used_up`: the limit of bytes that was
    reached, 0 where none was."""
    first = () if not used_up else (_tell_limit(used_up),)
    room = MOST - len(first)
    if len(refusals) <= room:
        return (*first, *map(_tell, refusals))
    told = refusals[: room - 1]
    left = len(refusals) - len(told)
    more = f"the network refused {left} more: `substrate trace show last --net` lists them"
    return (*first, *map(_tell, told), Denial(code="net_refused", text=more))


def _tell(refusal: Refusal) -> Denial:
    times = "" if refusal.count < 2 else f" ({refusal.count} times)"
    if not refusal.who:
        text = f"the network refused {refusal.what}{times}: {refusal.reason}"
    elif not refusal.others:
        text = f"{refusal.who} was refused {refusal.what}{times}: {refusal.reason}"
    else:
        more = "another" if refusal.others == 1 else f"{refusal.others} others"
        text = f"{refusal.who} and {more} were refused {refusal.what}{times}: {refusal.reason}"
    if refusal.hint:
        text += f"; {refusal.hint} allows it"
    return Denial(code="net_refused", text=text)


def _tell_limit(limit: int) -> Denial:
    text = (
        f"the network's limit of {size(limit)} was used up, and every connection ended:"
        " --limit egress=SIZE raises it"
    )
    return Denial(code="egress_limit", text=text)
