"""The bash text by which a line's shell leaves its state: variables, functions, options and the rest.

Not a reader of that state (state.py), nor what restores it (boot.py). Theory of operation. The
text runs in the world, behind the user's line, in the user's own shell: whatever the line
defined may stand in the way. It was parsed before the line, so no alias reaches it, and its words
are quoted where it is parsed again (the EXIT trap). A function may have the name of a builtin:
in POSIX mode, which an assignment switches on, the special builtins come first, so `unset -f`
is the real one (bash(1), "COMMAND EXECUTION"); with the functions of these names set aside,
`builtin` is what it says. It forks nothing and prints only to the state's fd. What breaks it all
the same (`enable -n`, a readonly name of ours) costs the state of that line, which the reader
notices by the missing end. Spec: world.md §4.
"""

from __future__ import annotations

import string

#: where the text to run comes in, and where the state goes out, in the line's shell
IN_FD, OUT_FD = 250, 251
#: by which a shell that has jobs is asked for them, and answers (holding.py)
ORDERS_FD, REPORTS_FD = 252, 253
#: how a saved state begins and ends
MAGIC, END = b"substrate-state-1", b"substrate-state-end"
#: how our trap on EXIT is known among the user's
TOKEN = b"substrate: saves the state of this shell"
#: functions of these names are set aside first, and come back last
SHADOWS = (
    "builtin declare enable set unset trap shopt printf eval exec exit umask pushd compgen kill "
    "jobs read fg bg wait disown"
)
#: of every name that a variable may have, by its first letter
_ALL_NAMES = " ".join(f'"${{!{letter}@}}"' for letter in string.ascii_letters + "_")

_SAVE = r"""
__substrate_posix=${POSIXLY_CORRECT-} __substrate_opts=$SHELLOPTS __substrate_shopts=$BASHOPTS
POSIXLY_CORRECT=1
[[ -e /dev/fd/OUT ]] || \exec OUT>&"$__substrate_kept"
\trap -p DEBUG >&OUT
\trap - DEBUG
\set +efkuvx
\unset -f typeset
\unset -v POSIXLY_CORRECT
\typeset -f SHADOWS >&OUT
POSIXLY_CORRECT=1
\unset -f SHADOWS
\unset -v POSIXLY_CORRECT
\enable -n >&OUT
\enable SHADOWED
{
\builtin printf '\0%s' MAGIC HOW "${__substrate_end[0]-}" "${__substrate_end[1]-}"
\builtin printf '\0'
\builtin printf '%s ' "${__substrate_end[@]:2}"
\builtin printf '\0%s' "$PWD" "$__substrate_opts" "$__substrate_shopts" "${PATH-}" "$__substrate_posix"
\builtin printf '\0'
\builtin trap -p ERR
\builtin printf '\0'
\builtin trap -p RETURN
\builtin printf '\0'
\builtin trap -p EXIT
\builtin trap - ERR RETURN
\builtin printf '\0'
\builtin unset -v __substrate_end __substrate_posix __substrate_opts __substrate_shopts __substrate_line __substrate_kept
\builtin trap -p
\builtin umask -p
if (( $# )); then
\builtin printf 'set --'
\builtin printf ' %q' "$@"
else
\builtin printf 'set --'
fi
for (( __substrate_i = ${#DIRSTACK[@]} - 1; __substrate_i > 0; __substrate_i-- )); do
\builtin printf '\npushd -n -- %q' "${DIRSTACK[__substrate_i]/#\~/${HOME-}}"
done
\builtin unset -v __substrate_i
\builtin printf '\0'
for __substrate_i in "${!BASH_ALIASES[@]}"; do
\builtin printf 'BASH_ALIASES[%q]=%q\n' "$__substrate_i" "${BASH_ALIASES[$__substrate_i]}"
done
\builtin unset -v __substrate_i
\builtin printf '\0'
\builtin compgen -A alias
\builtin unset -v BASH_ALIASES
\builtin printf '\0'
\builtin declare -p
\builtin printf '\0'
\builtin declare -f
\builtin printf '\0'
\builtin compgen -A function
\builtin printf '\0'
[[ HOW == end && -t 0 ]] && \builtin read -t 0 && IFS= \builtin read -rd '' -t 0.01 __substrate_ahead
\builtin printf '%s\0%s\0' "${__substrate_ahead-}" END
} >&OUT
"""


def _fill(text: str, how: str) -> str:
    for name, value in (
        ("SHADOWED", f"{SHADOWS} typeset"),
        ("SHADOWS", SHADOWS),
        ("MAGIC", MAGIC.decode()),
        ("HOW", how),
        ("END", END.decode()),
        ("OUT", str(OUT_FD)),
    ):
        text = text.replace(name, value)
    return text


#: behind a line that came to its end, and in the trap of a shell that ends before: __substrate_how says
#: whether by `exit` and the like, or by Ctrl-C ("interrupt")
SAVE_AT_END = _fill(_SAVE, "end")
SAVE_AT_EXIT = _fill(_SAVE, '"$__substrate_how"')
#: for boot.py: unsets what is in the environment and was no more when the state was saved
FORGET = f"""
__substrate_all=({_ALL_NAMES})
export -n "${{__substrate_all[@]}}"
declare -A __substrate_is
for __substrate_i in $__substrate_names; do __substrate_is[$__substrate_i]=; done
for __substrate_i in "${{__substrate_all[@]}}"; do
[[ -v __substrate_is[$__substrate_i] || $__substrate_i == @(BASH|__substrate)* ]] || unset -v "$__substrate_i"
done
unset -v __substrate_i __substrate_is __substrate_all __substrate_names
"""
