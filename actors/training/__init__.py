"""Fine-tuning on Ray: workers that encode clips once, and the processes that train."""
