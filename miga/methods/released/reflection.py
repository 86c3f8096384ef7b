"""Self-reflection as the authors' program does it: during initialisation alone. Source: decisions/0009."""

from __future__ import annotations

from miga.denoise_pass import Pass, PassSteps
from miga.methods.released.branches import BRANCHES, remainder
from miga.methods.released.settings import ReleasedSettings
from miga.queue import FrameQueue
from miga.reflection import SEARCH, CandidateTask, SelfReflection, candidate_of
from miga.windows import plan_pass


class ReleasedReflection(SelfReflection):
    """Alg. 6 after the passes of initialisation, with candidates that are stepped as often as pushed to."""

    config: ReleasedSettings

    @property
    def averages_latents(self) -> bool:  # type: ignore[override]
        """See `miga.consistency.consistency_score`."""
        return BRANCHES[self.config.released_branch].averages_latents

    def judged_position(self, queue: FrameQueue) -> int | None:
        """Position of the first judged latent; None while the whole base clip does not stand before it."""
        config = self.config
        position = len(queue) - config.judged_group * config.zigzag_width
        return position if position >= max(config.window, config.num_reflection_guidance_latents) else None

    def steps(self, task: CandidateTask) -> PassSteps:
        """The passes that grow one candidate."""
        assert task.last_base_1CHW is not None, "a candidate of this method is pushed copies of the base clip's end"
        config, guidance, num_held = self.config, task.guidance, len(task.guidance)
        purpose = f"search@{guidance.first + num_held}"
        stepper = self.stepper.named(f"{purpose}/", task.number).in_part(SEARCH)
        queue = guidance
        for _ in range(config.judged_group):
            queue = stepper.push_renoised(queue, task.last_base_1CHW, config.zigzag_width, config.num_steps, purpose)
            offset = remainder(len(queue), config.window, config.stride)
            plan = plan_pass(len(queue), config.window, config.stride, offset=offset)
            first = next(number for number, window in enumerate(plan) if window.keep_stop > num_held)
            kept = [window.keeping_from(num_held) for window in plan[first:]]
            queue = guidance.append((yield Pass(stepper, queue, kept, unkept=plan[:first])))
        return candidate_of(task, queue)
