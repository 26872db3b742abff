"""The default system-call filter: a short list of calls a container has no business with, refused with EPERM. Pure.

Why a list of what is refused and not, as docker's, of what is allowed: an allow-list must name several hundred
harmless calls and is wrong about every new one (a libc that expects ENOSYS gets EPERM); it belongs to whoever follows
each kernel release. What is listed here either needs a capability a container normally lacks (a second fence), or
widens the kernel's attack surface for any user: namespaces, io_uring, bpf, userfaultfd, keyrings (which no namespace
separates). The price is stated: a call unknown today is allowed. An own profile in the spec replaces this one,
``unconfined`` removes it. The filter is also short, so it is quick: kernels before 5.11 walk it at each call.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

EPERM = 1
ENOSYS = 38

# Refused unless the container holds one of the capabilities the kernel itself asks for; with none named, always.
# Source: the man page of each call; the capability column as in capabilities(7).
REFUSED: "tuple[tuple[tuple[str, ...], str], ...]" = (
    (
        ("CAP_SYS_ADMIN",),
        "mount umount umount2 pivot_root move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick "
        "mount_setattr setns unshare swapon swapoff sethostname setdomainname quotactl quotactl_fd fanotify_init "
        "lookup_dcookie userfaultfd",
    ),
    # User keys live outside every namespace: a container could read another's (CVE-2016-0728 was here, too).
    (("CAP_SYS_ADMIN",), "add_key request_key keyctl"),
    # Reached by any user, and the source of many local root exploits; docker and containerd 2 refuse it, too.
    ((), "io_uring_setup io_uring_enter io_uring_register"),
    (("CAP_SYS_ADMIN", "CAP_BPF"), "bpf"),
    (("CAP_SYS_ADMIN", "CAP_PERFMON"), "perf_event_open"),
    (("CAP_SYS_ADMIN", "CAP_SYSLOG"), "syslog"),
    (("CAP_DAC_READ_SEARCH",), "open_by_handle_at"),  # opens any file of the file system, past the container's root
    (("CAP_SYS_MODULE",), "init_module finit_module delete_module create_module get_kernel_syms query_module"),
    (("CAP_SYS_BOOT",), "reboot kexec_load kexec_file_load"),
    (("CAP_SYS_TIME",), "settimeofday stime clock_settime clock_settime64"),
    (("CAP_SYS_RAWIO",), "iopl ioperm"),
    (("CAP_SYS_PACCT",), "acct"),
    (("CAP_SYS_TTY_CONFIG",), "vhangup"),
    (("CAP_SYS_PTRACE",), "kcmp pidfd_getfd process_madvise"),
    ((), "_sysctl sysfs ustat uselib nfsservctl vm86 vm86old"),  # left over from older kernels
)

# clone(2) flags that make namespaces. CLONE_NEWTIME shares its bit with the exit signal: only unshare and clone3 take
# it, and both are refused.
NAMESPACE_FLAGS = (
    0x00020000,  # CLONE_NEWNS
    0x02000000,  # CLONE_NEWCGROUP
    0x04000000,  # CLONE_NEWUTS
    0x08000000,  # CLONE_NEWIPC
    0x10000000,  # CLONE_NEWUSER
    0x20000000,  # CLONE_NEWPID
    0x40000000,  # CLONE_NEWNET
)
AF_VSOCK = 40  # speaks to the hypervisor and is in no network namespace: vsock(7)

# The other system-call tables a machine offers must be filtered as well, or they are the way round.
# A table that is not listed is not open: libseccomp kills a process that uses one.
ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
}


def default_profile(capabilities: "Collection[str]", machine: str) -> "dict[str, Any]":
    """The OCI ``linux.seccomp`` object for a container with these capabilities on this kind of machine (uname -m).

    A name libseccomp does not know is skipped by runc, so newer calls may be listed.
    """
    names: list[str] = []
    for unless, listed in REFUSED:
        if not set(unless) & set(capabilities):
            names += listed.split()
    rules: list[dict[str, Any]] = [_refuse(names, EPERM)]
    if "CAP_SYS_ADMIN" not in capabilities:
        index = 1 if machine == "s390x" else 0  # s390 swaps the first two arguments: clone(2)
        rules += [_refuse(["clone"], EPERM, index, flag, flag) for flag in NAMESPACE_FLAGS]
        # Its flags lie in memory, where no filter can look. ENOSYS makes every libc fall back to clone.
        rules.append(_refuse(["clone3"], ENOSYS))
    # The kernel reads the family as an int: comparing all 64 bits could be evaded by setting the upper half.
    rules.append(_refuse(["socket"], EPERM, 0, 0xFFFFFFFF, AF_VSOCK))
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    if machine in ARCHITECTURES:
        profile["architectures"] = list(ARCHITECTURES[machine])
    return profile


def _refuse(names: "list[str]", errno: int, index: int = 0, mask: int = 0, value: int = 0) -> "dict[str, Any]":
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
    if mask:
        rule["args"] = [{"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]
    return rule
