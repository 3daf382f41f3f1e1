"""What crosses the border between a front end and the engine's process: msgpack, typed, nothing else."""

from __future__ import annotations

import msgspec

from fd_core.engine.config import EngineConfig
from fd_core.engine.request import EngineOutput, EngineRequest, EngineStats, ModelInfo


class Start(msgspec.Struct, tag="start"):
    config: EngineConfig


class Add(msgspec.Struct, tag="add"):
    request: EngineRequest


class Abort(msgspec.Struct, tag="abort"):
    request_id: str
    index: int | None = None


class Stop(msgspec.Struct, tag="stop"):
    pass


class Progress(msgspec.Struct, tag="progress"):
    """What the engine is doing while it loads."""

    text: str


class Ready(msgspec.Struct, tag="ready"):
    info: ModelInfo


class Failed(msgspec.Struct, tag="failed"):
    """The engine cannot start; the process ends after this."""

    text: str


class News(msgspec.Struct, tag="news"):
    """Outputs of one step, with the figures after it; without outputs it is a sign of life."""

    outputs: list[EngineOutput]
    stats: EngineStats


ToEngine = Start | Add | Abort | Stop
FromEngine = Progress | Ready | Failed | News

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    message: ToEngine = _to_engine.decode(data)
    return message


def decode_from_engine(data: bytes) -> FromEngine:
    message: FromEngine = _from_engine.decode(data)
    return message
