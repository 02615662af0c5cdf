"""The daemon that holds one loaded model and answers inference requests: llm-worker-rbee."""
