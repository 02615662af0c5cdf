"""rbee: a self-hosted LLM fleet over SSH, Ansible and HTTP."""

__version__ = "0.1.0"
