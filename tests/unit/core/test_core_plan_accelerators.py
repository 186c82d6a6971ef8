"""Which accelerators there are: the table, an administrator's entries, and what the labels of nodes say."""

import pytest

from tuneloop_core.plan.accelerators import DEFAULTS, Accelerator, NodeGroup, find, present, table


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("Tesla-T4", "T4"),
        ("NVIDIA-L4", "L4"),
        ("NVIDIA-A10", "A10"),
        ("NVIDIA-A10G", "A10G"),
        ("NVIDIA-L40S", "L40S"),
        ("NVIDIA-A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA-A100-80GB-PCIe", "A100-80GB"),
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA-H200", "H200"),
        ("NVIDIA-B200", "B200"),
        ("NVIDIA-GH200-480GB", None),
        ("", None),
    ],
)
def test_products_of_node_labels(product: str, name: str | None) -> None:
    found = find(DEFAULTS, product)
    assert (found.name if found else None) == name


def test_an_administrators_entry_wins_by_name_and_others_are_added() -> None:
    mine = Accelerator(name="L4", memory_mib=20000, bf16_teraflops=100, price_per_hour=0.5)
    new = Accelerator(name="X1", memory_mib=500_000, bf16_teraflops=9000, price_per_hour=30)
    kinds = table([mine, new])
    assert len(kinds) == len(DEFAULTS) + 1
    assert find(kinds, "NVIDIA-L4") == mine
    assert kinds[-1] == new


def test_the_least_memory_of_a_kind_counts() -> None:
    groups = (NodeGroup("NVIDIA-L4", 23034, {}), NodeGroup("NVIDIA-L4", 20000, {}), NodeGroup("Unheard-Of", 1, {}))
    assert [(kind.name, kind.memory_mib) for kind in present(DEFAULTS, groups)] == [("L4", 20000)]
