"""The fake accelerator fails where a device would, and tells what makes the host wait."""

from __future__ import annotations

import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable

import pytest
import torch

Check = Callable[[], None]


def refuses_the_host() -> None:
    import fake_accelerator as fake

    with fake.OnDevice():
        ours, host = torch.ones(2, 3, device=fake.DEVICE), torch.ones(2, 3)
        for mix in (lambda: ours + host, lambda: torch.cat([ours, host]), lambda: host @ ours.T):
            with pytest.raises(RuntimeError, match="of the host beside the device"):
                mix()
        with pytest.raises(TypeError, match="no numpy array"):
            ours.numpy()
        assert (ours * torch.tensor(2.0)).cpu().tolist() == [[2.0] * 3] * 2  # a number is no tensor


def tells_copies() -> None:
    import fake_accelerator as fake

    told: list[fake.Copy] = []
    fake.COPIED.append(told.append)
    with fake.OnDevice():
        ours = torch.ones(2, 3).to(fake.DEVICE)
        torch.zeros(4, device=fake.DEVICE)  # made there
        ours.cpu()
        assert pickle.loads(pickle.dumps(ours)).device.type == "cpu"
    ups = [(copy.upload, copy.shape, copy.nbytes) for copy in told]
    assert ups == [(True, (2, 3), 24), (False, (2, 3), 24), (False, (2, 3), 24)]


def tells_waits_of_the_package() -> None:
    import fake_accelerator as fake

    from dmole.transfer import to_device

    with fake.OnDevice():
        ours = to_device(torch.ones(3), fake.DEVICE)  # does not wait
        assert Counter() == fake.WAITED
        float(ours.sum())  # this line is none of the package
        assert Counter() == fake.WAITED
        to_device(ours, torch.device("cpu"))
    (line,) = fake.WAITED
    assert line.startswith("copy to the host at transfer.py:")


@pytest.mark.parametrize("check", [refuses_the_host, tells_copies, tells_waits_of_the_package])
def test_the_device_is_one(check: Check) -> None:
    process = multiprocessing.get_context("fork").Process(target=check)  # it registers the device
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
