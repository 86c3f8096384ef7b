"""An ablation: every setting of a grid on the same prompts, made as a run is made, scored, and tabled.

    OUT/prompts.jsonl            the rows that every setting makes: each prompt with each seed
    OUT/runs/<setting>/          a run of `miga generate`
    OUT/scores/<setting>.json    the scores of its videos
    OUT/ablation.md, .json       the tables; fig5.png, fig6.png, tradeoff.png: the figures

- `plan.py`: prompts, a grid and a config become an `AblationPlan`, with all that can be wrong in them found.
- `estimate.py`: what each setting would cost.
- `make.py`: makes and scores what is missing, no more, and writes the tables.
- `score.py`: the scores of videos.
- `ranking.py`: what a table's order becomes when stillness no longer counts.
- `tables.py`, `plots.py`: what is written.
"""
