"""The list of world.md §8, line by line: which attempts of the battery, and which tests, show it.

A row is one name of that list. `attempts` are run in a world of every backend, and outside as the
control; `tests` are whole tests, `module:function`, with a control of their own. What §8 does not
name and the battery tries all the same, stands under `MORE`. The lines about the network are those
of egress rules and stand where these are.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    attempts: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


def _row(text="", *tests):
    attempts = tuple(part.strip() for part in text.replace("\n", " ").split(";") if part.strip())
    return Row(attempts=attempts, tests=tests)


_HERE = "tests.world.escape.test_scenes"
_FLOODS = "tests.world.escape.test_floods"
_HOSTS = "tests.world.escape.test_hosts"
_NESTED = "tests.world.escape.test_nested"

FILESYSTEM = {
    "remount": _row(
        """remount the root; mount a tmpfs; bind a directory over another; unmount what covers /proc;
        umount2 of nothing; open_tree a copy of /; open_tree_attr; fsopen tmpfs; fsconfig; fsmount;
        fspick; move_mount; mount_setattr""",
        f"{_NESTED}:test_no_mask_comes_off",
    ),
    "pivot_root": _row("pivot_root; chroot", f"{_NESTED}:test_no_mask_comes_off"),
    "setns by /proc/*/ns": _row(
        """setns to pid 1's mount namespace; setns to the host process' network; setns by a bad fd;
        setns by a pidfd of pid 1; take pid 1's mount namespace from its pidfd"""
    ),
    "setns by passed fd": _row("setns by a passed fd"),
    "open_by_handle_at": _row(
        """open a file by its handle; open the root inode by a forged handle;
        open a process by its handle"""
    ),
    "mknod": _row("mknod a block device; mknod /dev/mem; mknod a whiteout"),
    "/dev/mem": _row(
        """open /dev/mem; open /dev/kmem; open /dev/port; open /dev/kmsg; open /dev/kvm;
        open /dev/fuse; open /dev/net/tun; open /dev/vsock; open /dev/loop-control; open /dev/vda;
        open /dev/sda; open /dev/nvme0n1; open /dev/cuse; open /dev/uinput; open /dev/userfaultfd;
        change the mode of a device; change the times of a device;
        change the mode of what covers /proc""",
        "tests.world.attacks.test_devices:test_a_node_of_the_host_cannot_be_opened",
        f"{_HERE}:test_a_device_of_the_host_keeps_its_mode",
    ),
    "core_pattern": _row(
        """write /proc/sys/kernel/core_pattern; write /proc/sys/kernel/modprobe;
        write /proc/sys/kernel/randomize_va_space; write /proc/sys/vm/overcommit_memory;
        write /proc/sys/vm/drop_caches; write /proc/sys/fs/binfmt_misc/register;
        write /proc/sys/net/ipv4/ip_forward; write /proc/sysrq-trigger;
        write /proc/irq/default_smp_affinity; write /proc/pressure/memory; write /proc/mtrr;
        write /proc/slabinfo; write /sys/kernel/uevent_helper;
        write /sys/kernel/mm/transparent_hugepage/enabled; write /sys/power/state;
        read /proc/kcore; read /proc/keys; read /proc/timer_list; read /proc/kallsyms;
        read /proc/iomem; read /proc/vmallocinfo; read /sys/kernel/debug/sched/features;
        read /sys/kernel/tracing/README; keep a trap for core dumps"""
    ),
    "release_agent": _row(
        """write /sys/fs/cgroup/memory/release_agent; write /sys/fs/cgroup/memory/notify_on_release;
        write /sys/fs/cgroup/cgroup.procs; write /sys/fs/cgroup/unified/cgroup.procs;
        write /sys/fs/cgroup/pids/cgroup.procs;
        write /sys/fs/cgroup/memory/memory.limit_in_bytes; make a control group""",
        f"{_NESTED}:test_no_limit_is_lifted_by_mounting_control_groups",
    ),
    "leaked fds": _row(
        "descriptors beyond the first three",
        f"{_HERE}:test_a_scripts_interpreter_is_no_descriptor_of_ours",
    ),
    "/proc/self/exe overwrite": _row(
        "overwrite pid 1's program", f"{_HERE}:test_the_hosts_python_is_not_reached_by_its_exe_link"
    ),
    "host sockets and FIFOs by path": _row(
        "connect to a host socket by path; write to a host FIFO"
    ),
    "abstract sockets": _row("connect to an abstract host socket"),
    "symlinked /dev in a re-used upper": _row(
        "", f"{_HERE}:test_a_symlink_in_the_upper_leads_no_mount_away"
    ),
    "symlink swapped between plan and apply": _row(
        "",
        "tests.world.attacks.test_swapped_names:test_another_symlink_in_place_of_a_staged_one_is_refused",
        "tests.world.layers.test_apply_faults:test_a_host_edit_inside_the_window_is_put_back",
    ),
    "forged overlay xattrs": _row(
        "forge an overlay mark",
        f"{_HERE}:test_marks_that_a_command_sets_mean_nothing_to_the_overlay",
    ),
    "hard link to a hidden path": _row(
        """hard link to a hidden file; read a hidden file; read a hidden file by /proc/self/root;
        read a hidden file by an opened directory; read a hidden file by another case of its name;
        rename what covers a hidden file; rename the directory above a hidden one;
        take away what covers a hidden file; exchange what covers a hidden file""",
        f"{_HERE}:test_what_a_command_does_above_a_hidden_path_opens_it_for_no_later_one",
        f"{_HERE}:test_a_hidden_file_that_the_host_replaces_meanwhile_stays_hidden",
    ),
    "background process surviving the world": _row(
        "", f"{_HERE}:test_no_process_outlives_its_world", f"{_HERE}:test_pid_1_cannot_be_ended"
    ),
    "supervisor killed -9 in each apply phase": _row(
        "",
        "tests.world.layers.test_apply_faults:test_killed_at_a_call_then_recovered",
        "tests.system.test_crash:test_a_killed_supervisor_leaves_nothing_and_loses_nothing",
    ),
}

KERNEL = {
    "bpf": _row("bpf"),
    "perf": _row("perf_event_open"),
    "io_uring": _row("io_uring_setup"),
    "keyctl": _row("keyctl; add_key; request_key"),
    "x32": _row("call by the x32 way; call by the i386 way; a call newer than the filter"),
    "AF_VSOCK/ALG/PACKET": _row(
        """socket vsock; socket alg; socket packet; socket packet in disguise; socket key;
        socket xdp; socket smc; socket smc by protocol; socket tipc; socket rds; socket bluetooth;
        socket raw ICMP; socket raw ICMPv6; socket MPTCP; socket SCTP; socket DCCP; socket L2TP;
        socket UDP-Lite; socket can; socket rxrpc; socket qipcrtr; socket nfc; socket kcm;
        socket llc; socket x25; socket phonet; socket netlink netfilter; socket netlink audit;
        socket netlink sock_diag; socket netlink kobject_uevent"""
    ),
    "TIOCSTI": _row(
        """type into the terminal (TIOCSTI); type into the terminal, with high bits in the request;
        paste into the console (TIOCLINUX); set a line discipline; open a terminal of the host""",
        f"{_HERE}:test_the_terminal_inside_is_the_worlds_own",
    ),
    "fork bomb": _row("", f"{_FLOODS}:test_a_fork_bomb_is_bounded"),
    "memory hog": _row("", f"{_FLOODS}:test_a_memory_hog_is_bounded"),
    "fd flood": _row("", f"{_FLOODS}:test_a_flood_of_descriptors_is_bounded"),
    "disk flood": _row("", f"{_FLOODS}:test_a_disk_flood_is_bounded"),
}

ROBUSTNESS = {
    "Docker default / seccomp=unconfined / SYS_ADMIN": _row(
        "", f"{_HOSTS}:test_in_a_container_it_starts_whole_or_says_what_is_missing"
    ),
    "no nf_tables": _row("", f"{_HOSTS}:test_without_netfilter_nothing_changes"),
    "cgroup v1/v2/none": _row(
        "",
        "tests.world.hardening.test_cgroup_plan:test_v1_each_controller_below_the_callers_own_group",
        "tests.world.hardening.test_cgroup_plan:test_v2_beside_the_caller",
        "tests.world.hardening.test_cgroup_plan:test_hybrid_kills_by_v2_and_limits_by_v1",
        "tests.world.hardening.test_cgroup_plan:test_a_host_without_cgroups",
        f"{_HOSTS}:test_without_control_groups_limits_are_told_to_be_soft",
    ),
    "missing kernel features faked off": _row(
        "", f"{_HOSTS}:test_a_missing_call_is_done_without_or_told"
    ),
    "100k-file diff": _row("", f"{_FLOODS}:test_a_diff_of_100000_files"),
    "500 layers": _row(
        "",
        "tests.system.test_endings:test_a_world_of_many_layers_goes_on",
        "tests.world.layers.test_squash:test_a_growing_stack_stays_shallow_and_is_not_merged_again_and_again",
    ),
    "disk full while staging (nothing applied)": _row(
        "",
        "tests.world.layers.test_apply_faults:test_a_call_fails_once",
        f"{_HOSTS}:test_a_full_disk_while_staging_applies_nothing",
    ),
    "two runs on one world": _row(
        "", "tests.system.test_endings:test_two_runs_on_one_world_the_second_fails_clearly"
    ),
    "clock stepping back": _row(
        "", "tests.world.layers.test_conflict:test_after_the_clock_was_set_back_nothing_is_certain"
    ),
}

MORE = {
    "namespaces": _row(
        """unshare a user namespace; unshare a mount namespace; unshare a network namespace;
        clone a user namespace; clone3""",
        f"{_NESTED}:test_sandboxes_run_where_they_are_allowed",
    ),
    "the world's first process": _row(
        """write /proc/1/mem; read /proc/1/environ; read /proc/1/maps; look through pid 1's root;
        look through pid 1's cwd; ptrace pid 1; process_vm_readv of pid 1;
        process_vm_writev to pid 1; kcmp with pid 1""",
        f"{_HERE}:test_pid_1_imports_nothing_that_the_world_wrote",
        "tests.world.attacks.test_seat:test_the_holder_stays_closed",
    ),
    "other processes": _row(
        """signal the host process; open a pidfd of the host process;
        read the host process' memory map; ptrace: be traced; ptrace a sibling; pidfd_getfd;
        process_madvise; move_pages; migrate_pages"""
    ),
    "rights": _row(
        """become root; have another uid than agreed; have more capabilities than agreed;
        gain privileges at exec; gain rights by a set-user-id program; raise a hard limit;
        sethostname"""
    ),
    "the rest of the kernel": _row(
        """userfaultfd; memfd_secret; fanotify_init; init_module; finit_module; delete_module;
        kexec_load; kexec_file_load; reboot; swapon; swapoff; acct; quotactl; quotactl_fd;
        clock_settime; settimeofday; adjtimex; syslog; iopl; ioperm; modify_ldt;
        personality: executable data; prctl: forge the program's name"""
    ),
}
