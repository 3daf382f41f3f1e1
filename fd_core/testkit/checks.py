"""What the kit checks of results and arguments. A check returns, or raises CheckFailed or NotApplicable."""

from __future__ import annotations

import numpy as np

from fd_core.api.kernel import ParamKind
from fd_core.testkit.check import arguments, run_oracle
from fd_core.testkit.trial import (
    REFUSALS,
    Array,
    CheckFailed,
    Guards,
    NotApplicable,
    Trial,
    compare,
    compiled,
    misaligned,
    or_refuse,
    right_or_refused,
    same,
    tensors,
    with_gaps,
)


def agrees_with_oracle(trial: Trial) -> None:
    """Outputs (full of garbage beforehand) within the op's tolerance; inputs left as they were."""
    inputs = trial.inputs()
    compare(trial, trial.run(arguments(trial.definition, inputs)), run_oracle(trial.definition, inputs))
    got = trial.run(arguments(trial.definition, inputs))
    for param in trial.definition.spec.params:
        value = inputs.get(param.name)
        if (
            param.kind is ParamKind.IN
            and isinstance(value, np.ndarray)
            and not same(got[param.name], value)
        ):
            raise CheckFailed(f"{param.name} is an input and was changed")


def repeats(trial: Trial) -> None:
    """The same call twice gives the same bits."""
    first, second = (trial.run(arguments(trial.definition, trial.inputs())) for _ in range(2))
    for param in trial.written():
        if isinstance(first[param.name], np.ndarray) and not same(first[param.name], second[param.name]):
            raise CheckFailed(f"{param.name} differs between two equal calls")


def rows_are_independent(trial: Trial) -> None:
    """The first, the middle and the last row alone give the bits that they give in the batch."""
    compiled(trial)
    names, inputs = trial.definition.rows, trial.inputs()
    count = min((len(inputs[n]) for n in names if isinstance(inputs.get(n), np.ndarray)), default=0)
    if count < 2 or trial.case.coupled:
        raise NotApplicable(
            trial.case.coupled or "the contract names no rows, or the case has fewer than two"
        )
    whole = trial.run(arguments(trial.definition, inputs))
    for number in sorted({0, count // 2, count - 1}):
        row = slice(number, number + 1)
        alone = {k: v[row] if k in names and isinstance(v, np.ndarray) else v for k, v in inputs.items()}
        try:
            single = trial.run(arguments(trial.definition, alone))
        except REFUSALS as error:
            raise NotApplicable(f"one row alone is no valid call: {error}") from error
        for param in trial.written():
            if param.name in names and not same(whole[param.name][row], single[param.name]):
                raise CheckFailed(
                    f"{param.name}: row {number} alone differs from row {number} of the batch"
                )


def no_rows(trial: Trial) -> None:
    """A batch without rows: nothing to do, and nothing to touch."""
    compiled(trial)
    names, inputs = trial.definition.rows, trial.inputs()
    if not names or trial.case.coupled:
        raise NotApplicable("the contract names no rows")
    empty = {k: v[:0] if k in names and isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    right_or_refused(trial, arguments(trial.definition, empty), "no rows")


def strided_tensors(trial: Trial) -> None:
    """Tensors with gaps between rows."""
    values = arguments(trial.definition, trial.inputs())
    if not any(isinstance(v, np.ndarray) and v.ndim > 1 and v.size for v in values.values()):
        raise NotApplicable("no tensor with rows")
    right_or_refused(trial, values, "strided tensors", with_gaps(trial.session))


def misaligned_tensors(trial: Trial) -> None:
    """Tensors that start one element after an aligned address."""
    values = arguments(trial.definition, trial.inputs())
    right_or_refused(trial, values, "misaligned tensors", misaligned(trial.session))


def stays_inside(trial: Trial) -> None:
    """Between guards (NaN in every float type, -1 in every integer): none is changed, none is used."""
    compiled(trial)
    inputs, guards = trial.inputs(), Guards(trial.session)
    got = or_refuse(trial, arguments(trial.definition, inputs), guards.place)
    if guards.broken():
        raise CheckFailed("wrote outside of its tensors")
    if got is not None:
        compare(trial, got, run_oracle(trial.definition, inputs))


def wrong_dtypes(trial: Trial) -> None:
    """Each tensor in turn as float64."""
    compiled(trial)
    values = arguments(trial.definition, trial.inputs())
    for name in tensors(values):
        if values[name].size and values[name].dtype != np.float64:
            wrong = values[name].astype(np.float32).astype(np.float64)
            right_or_refused(trial, {**values, name: wrong}, f"{name} as float64")


def wrong_shapes(trial: Trial) -> None:
    """Each tensor in turn without its last column, with one dimension more, and as a column or flat.

    `[n]` and `[n, 1]` are both legal for a vector with one element per slot; an op that takes them
    says so by giving the oracle's answer.
    """
    compiled(trial)
    values = arguments(trial.definition, trial.inputs())
    for name in tensors(values):
        if values[name].ndim and values[name].size > 1:
            short = np.ascontiguousarray(values[name][..., :-1])
            right_or_refused(trial, {**values, name: short}, f"{name} {list(short.shape)}")
            right_or_refused(trial, {**values, name: values[name][None]}, f"{name} of another rank")
            right_or_refused(trial, {**values, name: _column_or_flat(values[name])}, f"{name} reshaped")


def _column_or_flat(array: Array) -> Array:
    return array[:, None] if array.ndim == 1 else array.reshape(-1)
