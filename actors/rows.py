"""What came of a row as its line of the manifest."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from actors.messages import VideoResult
from miga.backbones.base import BackboneSpec
from pipeline.rows import BadRow, ManifestRow, PromptRow, bad_row_key, canonical_json, video_key
from pipeline.run_folder import RunRecord, shard_of


class RowMaker:
    """Makes the manifest's rows of one run.

    Args:
        record: the run, as run.json has it.
        spec: the model.
    """

    def __init__(self, record: RunRecord, spec: BackboneSpec) -> None:
        self._record, self._spec = record, spec
        self._per_shard = int(record.config["run"]["prompts_per_shard"])
        self._config, self._config_hash = canonical_json(record.sampler), record.config_hash

    def shard(self, row: PromptRow | BadRow) -> int:
        """The shard of a row."""
        return shard_of(row.index, self._per_shard)

    def key(self, row: PromptRow | BadRow) -> str:
        """What names its video."""
        if isinstance(row, BadRow):
            return bad_row_key(row)
        record = self._record
        return video_key(
            row.prompts, row.negative_prompt, row.seed, row.num_frames, record.sampler, record.model_revision
        )

    def finished(self, row: PromptRow, key: str, attempt: int, waited_s: float, result: VideoResult) -> ManifestRow:
        """A row that was made."""
        trace = result.trace
        return ManifestRow(
            **self._common(row, key),
            status="ok",
            num_latents=self._spec.num_latents(row.num_frames),
            fps=result.fps,
            height=result.height,
            width=result.width,
            uri=result.uri,
            bytes=result.bytes,
            sha256=result.sha256,
            duration_s=result.duration_s,
            network_calls=result.num_calls,
            encode_text_s=result.encode_text_s,
            denoise_s=result.denoise_s,
            decode_s=result.decode_s,
            encode_video_s=result.encode_video_s,
            upload_s=result.upload_s,
            queue_wait_s=waited_s,
            peak_memory_bytes=result.peak_memory_bytes,
            device=result.device,
            node=result.node,
            attempt=attempt,
            gpu_s=result.gpu_s,
            helper_calls=result.num_helper_calls,
            latents_uri=result.latents_uri,
            consistency=trace.scores,
            consistency_latents=trace.latents,
            searched_at=_where(trace.searched),
            corrected_at=_where(trace.corrected),
            final_consistency=result.final_consistency,
            num_evaluations=len(trace.scores),
            num_searches=sum(trace.searched),
            num_corrections=sum(trace.corrected),
        )

    def failed(self, row: PromptRow | BadRow, attempt: int, error_type: str, error: str) -> ManifestRow:
        """A row that was given up."""
        common = self._common(row, self.key(row))
        return ManifestRow(**common, status="failed", attempt=attempt, error_type=error_type, error=error)

    def _common(self, row: PromptRow | BadRow, key: str) -> dict[str, Any]:
        """The columns that finished and failed rows share."""
        record = self._record
        asked = (
            {"negative_prompt": row.negative_prompt, "seed": row.seed, "num_frames": row.num_frames}
            if isinstance(row, PromptRow)
            else {}
        )
        return {
            "key": key,
            "id": row.id,
            "row": row.index,
            "shard": self.shard(row),
            "prompts": row.prompts,
            "profile": record.profile,
            "model": record.model,
            "model_revision": record.model_revision,
            "config": self._config,
            "config_hash": self._config_hash,
            "created_at": datetime.now(UTC),
            "version": record.version,
            "metadata": json.dumps(row.metadata, ensure_ascii=False),
            **asked,
        }


def _where(flags: tuple[bool, ...]) -> tuple[int, ...]:
    return tuple(index for index, flag in enumerate(flags) if flag)
