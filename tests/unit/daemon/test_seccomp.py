"""The default system-call filter as an OCI object. That it blocks is tests/kernel/test_spec_runc.py."""

import pytest

from daemon import seccomp, spec_caps


def refused(capabilities: list[str]) -> set[str]:
    """Names refused outright, whatever their arguments."""
    rules = seccomp.default_profile(capabilities, "x86_64")["syscalls"]
    return {name for rule in rules if "args" not in rule for name in rule["names"]}


def test_everything_else_is_allowed() -> None:
    assert seccomp.default_profile([], "x86_64")["defaultAction"] == "SCMP_ACT_ALLOW"


def test_the_default_capabilities_leave_every_named_call_refused() -> None:
    named = {name for _, names in seccomp.REFUSED for name in names.split()}

    assert named | {"clone3"} == refused(list(spec_caps.DEFAULT))


@pytest.mark.parametrize(
    ("capability", "opened"),
    [
        ("CAP_SYS_ADMIN", {"mount", "unshare", "setns", "bpf", "clone3", "keyctl"}),
        ("CAP_SYS_MODULE", {"init_module", "finit_module", "delete_module"}),
        ("CAP_SYS_BOOT", {"reboot", "kexec_load"}),
        ("CAP_SYS_TIME", {"clock_settime"}),
        ("CAP_BPF", {"bpf"}),
        ("CAP_DAC_READ_SEARCH", {"open_by_handle_at"}),
    ],
)
def test_a_capability_opens_its_calls(capability: str, opened: set[str]) -> None:
    assert opened <= refused([]) - refused([capability])


def test_some_calls_no_capability_opens() -> None:
    assert {"io_uring_setup", "uselib"} <= refused(list(spec_caps.ALL))


def test_clone_is_refused_for_each_namespace_flag_alone() -> None:
    """One rule per flag, since a rule with a mask of all flags would match only all of them together."""
    rules = [each for each in seccomp.default_profile([], "x86_64")["syscalls"] if each["names"] == ["clone"]]

    assert sum(each["args"][0]["value"] for each in rules) == 0x7E020000
    for each in rules:
        arg = each["args"][0]
        assert ("SCMP_CMP_MASKED_EQ", 0, arg["value"]) == (arg["op"], arg["index"], arg["valueTwo"])


def test_clone3_is_said_not_to_exist() -> None:
    """Its flags cannot be seen by a filter; with ENOSYS libc falls back to clone, with EPERM threads would fail."""
    (rule,) = [each for each in seccomp.default_profile([], "x86_64")["syscalls"] if each["names"] == ["clone3"]]

    assert rule["errnoRet"] == 38


def test_s390_passes_its_flags_second() -> None:
    rules = [each for each in seccomp.default_profile([], "s390x")["syscalls"] if each["names"] == ["clone"]]

    assert {1} == {each["args"][0]["index"] for each in rules}


def test_every_call_table_of_the_machine_is_filtered() -> None:
    assert {"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"} == set(
        seccomp.default_profile([], "x86_64")["architectures"]
    )
    assert "architectures" not in seccomp.default_profile([], "mips")
