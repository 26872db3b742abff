"""Capability sets after adding and dropping."""

import pytest

from daemon import spec_caps
from daemon.spec import SpecError, parse_capability


@pytest.mark.parametrize("text", ["net_admin", "NET_ADMIN", "CAP_NET_ADMIN", "cap_net_admin", " net_admin "])
def test_names_with_and_without_prefix(text: str) -> None:
    assert parse_capability(text) == "CAP_NET_ADMIN"


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'CAP_NET_ADMIN'"):
        parse_capability("net_admn")


def test_there_are_41_and_the_numbers_fit() -> None:
    """Spot checks against linux/capability.h: 0, 12, 21, 24, 40."""
    assert len(spec_caps.ALL) == 41
    named = {number: spec_caps.ALL[number] for number in (0, 12, 21, 24, 40)}
    assert named == {
        0: "CAP_CHOWN",
        12: "CAP_NET_ADMIN",
        21: "CAP_SYS_ADMIN",
        24: "CAP_SYS_RESOURCE",
        40: "CAP_CHECKPOINT_RESTORE",
    }


def test_the_default_set_is_dockers_mask() -> None:
    """0xa80425fb is what CapEff shows in a plain docker container."""
    mask = sum(1 << spec_caps.ALL.index(name) for name in spec_caps.DEFAULT)

    assert mask == 0xA80425FB
    assert set(spec_caps.DEFAULT) == set(spec_caps.from_mask(mask))


def test_add_and_drop() -> None:
    made = spec_caps.resolve(spec_caps.DEFAULT, ["sys_time"], ["mknod", "CAP_NET_RAW"])

    assert set(spec_caps.DEFAULT) - {"CAP_MKNOD", "CAP_NET_RAW"} | {"CAP_SYS_TIME"} == set(made)


def test_all_goes_first() -> None:
    assert spec_caps.resolve(spec_caps.DEFAULT, ["chown"], ["all"]) == ["CAP_CHOWN"]
    assert [each for each in spec_caps.ALL if each != "CAP_CHOWN"] == spec_caps.resolve((), ["ALL"], ["chown"])
    assert spec_caps.resolve(spec_caps.DEFAULT, drop=["ALL"]) == []


def test_both_added_and_dropped_is_refused() -> None:
    with pytest.raises(SpecError, match="CAP_CHOWN is both added and dropped"):
        spec_caps.resolve((), ["chown"], ["chown"])


def test_sets_are_cut_to_what_the_host_has_but_names_are_refused() -> None:
    available = [each for each in spec_caps.ALL if each != "CAP_SYS_RESOURCE"]

    assert available == spec_caps.resolve((), ["ALL"], available=available)
    with pytest.raises(SpecError, match="CAP_SYS_RESOURCE cannot be given"):
        spec_caps.resolve((), ["sys_resource"], available=available)
