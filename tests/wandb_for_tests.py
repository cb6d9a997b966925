"""What W&B's offline files hold."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import wandb


def offline_records(folder: Path) -> list:
    """Read all records of the offline runs under a folder: LevelDB blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # finish() may return before wandb's service has written its last bytes
    records = []
    for file in sorted(folder.rglob("*.wandb")):
        content, offset, data = file.read_bytes(), 7, b""
        while offset + 7 <= len(content):
            left = 32768 - offset % 32768
            if left < 7:
                offset += left
                continue
            _, length, kind = struct.unpack_from("<IHB", content, offset)
            data += content[offset + 7 : offset + 7 + length]
            offset += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                record = wandb_internal_pb2.Record()
                record.ParseFromString(data)
                records.append(record)
                data = b""
    return records


def offline_history(folder: Path) -> list:
    """Return the rows of the offline runs under a folder; parts of a key are joined by /."""
    return [
        {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in offline_records(folder)
        if record.HasField("history")
    ]
