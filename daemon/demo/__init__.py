"""`relearn demo`: the main job for real, on the handwritten digits that scikit-learn carries."""

from daemon.demo.script import run_demo

__all__ = ["run_demo"]
