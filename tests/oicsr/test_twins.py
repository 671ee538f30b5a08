"""Teachers that are moving averages of their students, and networks that look like them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import oicsr

ROWS = torch.randn(5, 6)


def layers(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


class Bootstrapped(nn.Module):
    """A student and a teacher, both of which run; that the teacher follows is up to the training loop."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = self.teacher(x)
        return self.student(x), target


class Following(Bootstrapped):
    """One that follows in the forward itself, as in MoCo."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for slow, fast in pairs if self.training else ():
                slow.data = slow.data * 0.9 + fast.data * 0.1
        return super().forward(x)


def bootstrapped(student: nn.Module, teacher: nn.Module | None = None) -> Bootstrapped:
    """Return a student, some steps of training behind, with a frozen teacher: another one, or its average."""
    model = Bootstrapped(student, copy.deepcopy(student) if teacher is None else teacher)
    model.teacher.requires_grad_(False)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * parameter.std() * torch.randn_like(parameter)
    return model


def removed(model: nn.Module, kept: dict[str, list[int]], tie: list[tuple[str, str]] | None = None) -> list[str]:
    """Return what is said where channels of a network are removed, and run it."""
    couplings = oicsr.tie_couplings(oicsr.find_couplings(model, ROWS), tie or [])
    plan = oicsr.PruningPlan.from_kept(couplings, kept)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        oicsr.remove_channels(model, plan)(ROWS)
    assert all(entry.filename == __file__ for entry in caught if entry.category is oicsr.UntiedWarning)
    return [str(entry.message) for entry in caught if entry.category is oicsr.UntiedWarning]


@pytest.mark.parametrize("other", [[1, 2, 3, 4], [0, 1, 2]])
def test_a_teacher_that_loses_other_channels_than_its_student_is_named(other: list[int]) -> None:
    torch.manual_seed(0)
    model = bootstrapped(layers())
    [said] = removed(model, {"student.0": [0, 1, 2, 3], "teacher.0": other})
    assert said.startswith("'teacher' is frozen, has weights near those of 'student', and keeps other channels")
    assert said.endswith("such as [('student.0', 'teacher.0')]")


def test_a_teacher_that_is_tied_to_its_student_follows_it() -> None:
    torch.manual_seed(0)
    model = bootstrapped(layers())
    assert not removed(model, {"teacher.0": [0, 3, 5]}, [("student.0", "teacher.0")])
    assert not removed(model, {"student.0": [0, 3, 5], "teacher.0": [0, 3, 5]})


def test_a_teacher_of_another_training_or_other_shapes_is_not_named() -> None:
    torch.manual_seed(0)
    for teacher in (layers(), layers(20)):
        model = bootstrapped(layers(), teacher)
        assert not removed(model, {"student.0": [0, 1], "teacher.0": [3, 4, 5]})
    model = bootstrapped(layers())
    model.teacher.requires_grad_(True)  # two networks that are trained, from one start
    assert not removed(model, {"student.0": [0, 1], "teacher.0": [3, 4, 5]})
    model.requires_grad_(False)
    assert not removed(model, {"student.0": [0, 1], "teacher.0": [3, 4, 5]})


def test_a_teacher_that_follows_in_the_forward_is_tied_by_that() -> None:
    model = Following(layers(), layers().requires_grad_(False))
    [coupling] = oicsr.find_couplings(model, ROWS)
    assert {member.parameter for member in coupling.members} >= {"student.0.weight", "teacher.0.weight"}
