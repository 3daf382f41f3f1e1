"""A 16-bit checkpoint to one whose linear layers are stored as a method packs them (`fd quantize`).

Layer by layer: what is in memory at a time does not grow with their number.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fd_core.api.quant import ExpertMethod, ExpertSpec, LinearSpec, QuantMethod
from fd_core.api.tensor import TensorSpec
from fd_core.host.plugins import plugin_host
from fd_core.host.session import Session, open_session
from fd_core.layers.context import ModelContext
from fd_core.layers.embedding import Embedding, PackedEmbedding
from fd_core.layers.linear import Linear
from fd_core.layers.moe import Expert
from fd_core.layers.weight import Piece, Weighted
from fd_core.loader.folder import INDEX, SINGLE, FolderSource
from fd_core.loader.layout import WeightLayout
from fd_core.loader.load import load_layer, release
from fd_core.loader.write import TensorWriter
from fd_core.models.config import ModelConfig, load_config
from fd_core.models.decoder import DecoderLM
from fd_core.models.registry import resolve
from fd_core.quantization.calibrate import WINDOW, Calibration, Watched, WatchedTable, worth_moments
from fd_core.quantization.config import EXPERTS, HEAD, TABLE, UNQUANTIZED, QuantConfig, QuantError
from fd_core.quantization.convert_experts import ConvertedExperts, Write
from fd_core.quantization.registry import QuantChooser
from fd_core.quantization.rounding import Moments
from fd_core.quantization.stored_codes import storable, storable_experts
from fd_core.quantization.unquantized import Unquantized

#: Options of methods that say how weights are stored.
METHOD_OPTIONS = ("group_size", "zero_point")
#: Files of a model folder that go along: tokenizer, templates, generation settings.
_COMPANIONS = (".json", ".txt", ".jinja", ".model", ".tiktoken", ".md")


@dataclass(frozen=True, slots=True)
class Job:
    """What to convert: a model folder, where to, and how. `windows`: token ids of calibration text."""

    folder: Path
    out: Path
    quant: QuantConfig
    windows: Sequence[Sequence[int]] = ()
    platform: str = ""
    progress: bool | None = None


def check(job: Job) -> ModelConfig:
    """The model's configuration; raises where the folders do not allow the job."""
    parsed = load_config(job.folder, None)
    if parsed.quantization_config:
        raise QuantError(f"{job.folder}: want a checkpoint of plain weights, have one that is quantised")
    if job.out.exists() and any(job.out.iterdir()):
        raise FileExistsError(f"{job.out}: want a folder that is empty or not there yet, have files in it")
    return parsed


def rounds_by_effect(job: Job) -> bool:
    """Whether some method of the job rounds better with calibration."""
    session = open_session(job.platform or None)
    chooser = QuantChooser(job.quant, session.quant_methods, session.device, session.platform, session.ops)
    return any(worth_moments(method) for method in chooser.mentioned())


def convert(job: Job) -> None:
    """Write the folder `job.out`. Raises before anything is written when the job cannot be done."""
    parsed = check(job)
    session = open_session(job.platform or None)
    conversion = Conversion(job, parsed, session)
    job.out.mkdir(parents=True, exist_ok=True)
    conversion.run()
    _copy_companions(job.folder, job.out)
    _write_config(job, conversion.forms)


class Conversion:
    """The model, its source and the file being written."""

    def __init__(self, job: Job, parsed: ModelConfig, session: Session) -> None:
        self._job = job
        watching = _Watching(job, session, self._write_part)
        model = resolve(parsed.architectures, plugin_host().models())(
            parsed, _context(parsed, session, watching)
        )
        if not isinstance(model, DecoderLM):
            raise QuantError(f"fd quantize: want a decoder of blocks, have {type(model).__name__}")
        self._model = model
        self._source = FolderSource(job.folder, WeightLayout.AUTO, parsed.weight_layout)
        self._everything = model.layers_with_weights()
        declared = [p for layer in self._everything for p in layer.parameters().values()]
        self._source.check(declared, model.ignored_weights(parsed))
        self.forms: dict[str, str] = {}
        self._specs = {name: spec for layer in self._everything for name, spec in self._stored(layer)}
        self._total = sum(spec.nbytes for spec in self._specs.values())

    # -- what will be stored -----------------------------------------------------------------------

    def _stored(self, layer: Weighted) -> Iterator[tuple[str, TensorSpec]]:
        target, stored = _converted(layer)
        if target is not None:
            self.forms[target.name] = target.form
        yield from stored.items()
        for piece, array in self._kept(layer):
            yield piece.name, _spec_of(array)

    def _kept(self, layer: Weighted) -> Iterator[tuple[Piece, Any]]:
        """Tensors of the layer that stay as they are."""
        if isinstance(layer, Embedding) and self._shares_table():
            return
        packed, _ = _converted(layer)
        for name, parameter in layer.parameters().items():
            if packed is not None and name != "bias":
                continue
            for piece in parameter.pieces:
                yield piece, self._source.read(piece, parameter.spec.dtype)

    def _shares_table(self) -> bool:
        head = _watched(self._model.head)
        tied = self._model.config.tie_word_embeddings
        return tied and (head is None or head.target.has_lookup)

    # -- doing it ------------------------------------------------------------------------------------

    def run(self) -> None:
        self._writer = TensorWriter(self._job.out / SINGLE, self._specs)
        hidden = None if self._job.progress is None else not self._job.progress
        try:
            with tqdm(
                total=self._total, unit="B", unit_scale=True, desc="quantising", disable=hidden
            ) as self._bar:
                self._convert_all()
            self._writer.close()
        except BaseException:
            self._writer.abandon()
            raise

    def _convert_all(self) -> None:
        model = self._model
        self._everything.clear()
        self._take([model.embed, model.norm])
        self._round([model.embed])
        streams = Calibration(model, self._job.windows) if self._job.windows else None
        for i, block in enumerate(model.blocks):
            layers = list(block.layers())
            self._take(layers)
            if streams is not None:
                streams.begin(i, [watched for layer in layers if (watched := _watched(layer))])
            self._round(layers, streams.moments if streams else None)
            if streams is not None:
                streams.step()
            model.blocks[i] = None  # type: ignore[call-overload]  # its memory goes
        self._convert_head(streams)

    def _convert_head(self, streams: Calibration | None) -> None:
        head = self._model.head
        self._take([head])
        self._round([head], streams.head_moments if streams else None)

    def _take(self, layers: Iterable[Weighted]) -> None:
        """Load layers and write what stays as it is."""
        for layer in layers:
            for piece, array in self._kept(layer):
                self._write(piece.name, array)
            load_layer(layer, self._source, layer.parameters())

    def _round(
        self, layers: Iterable[Weighted], moments: Callable[[Watched], Moments | None] | None = None
    ) -> None:
        for layer in layers:
            watched, linear = _watched(layer), _linear(layer)
            if watched is not None and linear is not None:
                found = moments(watched) if moments is not None else None
                for name, tensor in watched.convert(found).items():
                    self._write(f"{linear.spec.prefix}.{name}", tensor.numpy())
                release(self._source, layer.parameters())

    def _write_part(self, name: str, index: int, array: np.ndarray[Any, Any]) -> None:
        self._writer.write_part(name, index, array)
        self._bar.update(array.nbytes)

    def _write(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._writer.write(name, array)
        self._bar.update(array.nbytes)


class _Watching:
    """Layers that run on plain weights and know what they become."""

    def __init__(self, job: Job, session: Session, write: Write) -> None:
        parts = (session.device, session.platform, session.ops)
        methods: dict[str, type[QuantMethod]] = {UNQUANTIZED: Unquantized, **session.quant_methods}
        self._targets = QuantChooser(job.quant, session.quant_methods, *parts)
        self._plain = QuantChooser(QuantConfig(), methods, *parts)
        self._write, self._runs = write, bool(job.windows)

    def __call__(self, spec: LinearSpec) -> QuantMethod:
        target, plain = storable(self._targets(spec)), self._plain(spec)
        return Watched(plain, target) if target.form else plain

    def table(self, spec: LinearSpec) -> QuantMethod | None:
        target = self._targets.table(spec)
        return WatchedTable(self._plain(spec), storable(target)) if target is not None else None

    def experts(self, spec: ExpertSpec) -> ExpertMethod:
        target, plain = storable_experts(self._targets.experts(spec)), self._plain.experts(spec)
        return ConvertedExperts(plain, target, self._write, self._runs) if target.method.form else plain


def _converted(layer: Weighted) -> tuple[QuantMethod | None, dict[str, TensorSpec]]:
    """What a layer is converted by, and the tensors that are stored instead; None: it stays."""
    watched = _watched(layer)
    linear = _linear(layer)
    if watched is not None and linear is not None:
        spec, target = linear.spec, watched.target
        return target, {f"{spec.prefix}.{n}": one for n, one in target.stored_weights(spec).items()}
    method = layer.experts.method if isinstance(layer, Expert) else None
    if isinstance(layer, Expert) and isinstance(method, ConvertedExperts):
        return method.method, method.stored_weights(layer.experts.spec)
    return None, {}


def _watched(layer: Weighted) -> Watched | None:
    linear = _linear(layer)
    return linear.method if linear is not None and isinstance(linear.method, Watched) else None


def _linear(layer: Weighted) -> Linear | None:
    """The layer, or what an embedding keeps its table in."""
    inner = layer.table if isinstance(layer, PackedEmbedding) else layer
    return inner if isinstance(inner, Linear) else None


def _spec_of(array: np.ndarray[Any, Any]) -> TensorSpec:
    from fd_core.api import dtype as dt

    return TensorSpec(array.shape, dt.dtype(array.dtype.name))


def _context(parsed: ModelConfig, session: Session, choose: Any) -> ModelContext:
    from fd_core.api import dtype as dt

    dtype = dt.dtype(parsed.dtype)
    return ModelContext(
        platform=session.platform,
        device=session.device,
        ops=session.ops,
        dtype=dtype,
        cache_dtype=session.device.activation_dtype or dtype,
        block_size=64,
        max_num_tokens=WINDOW,
        max_num_seqs=1,
        max_model_len=min(parsed.max_model_len, WINDOW),
        quant=choose,
        attention_backends=session.attention_backends,
    )


def _copy_companions(folder: Path, out: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in _COMPANIONS and file.name not in ("config.json", INDEX):
            shutil.copyfile(file, out / file.name)


def _write_config(job: Job, forms: Mapping[str, str]) -> None:
    """Last, so that a folder with a config.json is whole."""
    raw = json.loads((job.folder / "config.json").read_text("utf-8"))
    raw["quantization_config"] = {**described(job.quant), "is_quantized": True, "forms": dict(forms)}
    raw.pop("weight_layout", None)
    (job.out / "config.json").write_text(json.dumps(raw, indent=2) + "\n", "utf-8")


def described(quant: QuantConfig) -> dict[str, Any]:
    """The configuration as config.json states it: what parse_quantization reads back."""
    own = {k: v for k, v in quant.options.items() if k in METHOD_OPTIONS}
    return {
        "quantization": quant.name,
        **own,
        HEAD: quant.head or quant.name,
        TABLE: quant.table or quant.head or quant.name,
        EXPERTS: quant.experts or quant.name,
        "skip": list(quant.skip),
        "layers": dict(quant.layers),
        **({"kv_cache_quant_type": quant.kv_cache} if quant.kv_cache else {}),
    }
