"""Keys of events that the redactor finds clean: those that every session writes.

What a process would find out by itself, key by key, with its first lines (cleared.py), which is a tenth of what
a run costs before its command starts. Not a rule: a test asks the redactor about each. trace.md §6.
"""

from __future__ import annotations

#: clean themselves
KEYS = frozenset(
    """
    absent abstract_sockets action added allowed answer arch argv backend blind_spots blob
    boot_id bytes_in bytes_out capabilities capture cgroup_ns client_port clock cmd code
    columns commitment connection connections continued core_dumps counts created credentials
    cwd decision deleted denials deterministic digest digest_after directories display domain
    durability durable duration_us egid encoding ended_by endpoints entries env env_names
    env_withheld euid exe exe_digest exit failed fd fds file files fs fs_diff gate gid hidden
    host host_pid how inblock inode interpreter interpreter_digest ip ipc isolation joined
    kernel kind layer layers level limit_pids local_ip local_port looked_up lost majflt
    maxrss_kib media_type meta minflt missing_kinds mode modified mono_us name named net
    network nivcsw no_new_privs nvcsw on oublock overflow parent path perhaps_read pid place
    policy_decision policy_digest port proc processes programs protocol read reason recorded
    refused renamed replay_context restrictions result risk risk_reason rows rule rusage scope
    scopes_used seccomp seed size stderr stdin stdout stime_us substrate_version summary
    target terminal text tree_digest type type_changed uid umask unknown user utime_us uts why
    workspace world written
    """.split()
)
#: of these, such as make a secret of a text below them
NAMING = frozenset(("credentials",))
