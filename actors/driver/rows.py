"""What came of a row as its line of the manifest."""

from __future__ import annotations

from datetime import UTC, datetime

from actors.messages import VideoResult
from miga.backbones.base import BackboneSpec
from pipeline.records.run_folder import RunRecord, shard_of
from pipeline.rows import BadRow, ManifestRow, PromptRow


class RowMaker:
    """Makes the manifest's rows of one run.

    Args:
        record: the run, as run.json has it.
        spec: the model.
    """

    def __init__(self, record: RunRecord, spec: BackboneSpec) -> None:
        self.record, self._spec = record, spec
        self._per_shard = record.settings.run.prompts_per_shard

    def shard(self, row: PromptRow | BadRow) -> int:
        """The shard of a row."""
        return shard_of(row.index, self._per_shard)

    def key(self, row: PromptRow | BadRow) -> str:
        """What names its video."""
        return self.record.key(row)

    def finished(self, row: PromptRow, key: str, attempt: int, waited_s: float, result: VideoResult) -> ManifestRow:
        """A row that was made."""
        trace = result.trace
        return ManifestRow(
            **self.record.columns(row, key),
            status="ok",
            created_at=datetime.now(UTC),
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
        return ManifestRow(
            **self.record.columns(row, self.key(row)),
            status="failed",
            created_at=datetime.now(UTC),
            attempt=attempt,
            error_type=error_type,
            error=error,
        )


def _where(flags: tuple[bool, ...]) -> tuple[int, ...]:
    return tuple(index for index, flag in enumerate(flags) if flag)
