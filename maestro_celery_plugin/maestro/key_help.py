"""The help of Maestro's blocks and keys, which its own schemas do not have."""

from __future__ import annotations

__all__ = ["BLOCK_HELP", "KEY_HELP"]

BLOCK_HELP = {
    "description": "The name and the purpose of the study.",
    "batch": "The batch system, for Maestro's adapters and for the workers.",
    "env": "Variables, labels and dependencies, whose values replace tokens such as `$(NAME)`.",
    "study": "The steps, each after those that it depends on.",
    "global.parameters": "The parameters by name; a step that uses their tokens runs once per combination.",
    "merlin": "The ensemble: samples, and workers that run them.",
    "user": "Free content, for YAML anchors (`&name`) that other blocks use (`*name`).",
}

_RESOURCE_SET = "of an LSF resource set"

# The keys by block.
KEY_HELP = {
    "description": {
        "name": "Name of the study; its directory and log file have this name.",
        "description": "Purpose of the study.",
    },
    "env": {
        "variables": "Variables by name; `$(NAME)` becomes the value everywhere. Studies are created in `OUTPUT_PATH`.",
        "labels": "Texts by name, in which tokens of parameters and samples are inserted.",
        "sources": "Files that scripts source.",
        "dependencies": "Files and repositories that must exist at the launch.",
    },
    "env.dependencies": {
        "paths": "Paths that must exist; `$(NAME)` becomes the path.",
        "git": "Git repositories that Maestro clones; `$(NAME)` becomes the path of the clone.",
    },
    "env.dependencies.paths": {"name": "Name of the token.", "path": "Path of a file or a directory."},
    "env.dependencies.git": {
        "name": "Name of the token.",
        "path": "Directory in which the clone is created.",
        "url": "Address of the repository.",
        "tag": "Tag, branch or commit to check out.",
    },
    "study": {
        "name": "Name of the step, unique in the study.",
        "description": "Purpose of the step.",
        "run": "What the step runs, and with which resources.",
    },
    "study.run": {
        "cmd": "Shell commands of the step.",
        "depends": "Steps that must finish before this one; `NAME_*` for all parameter combinations of a step.",
        "pre": "Refused, because Maestro does not run it; put its commands at the beginning of `cmd`.",
        "post": "Refused, because Maestro does not run it; put its commands at the end of `cmd`.",
        "restart": "Shell commands instead of `cmd` when the step runs again after a time limit.",
        "nodes": "Number of nodes.",
        "procs": "Number of processes.",
        "gpus": "Number of GPUs.",
        "cores per task": "Number of cores of each process.",
        "tasks per rs": f"Number of processes {_RESOURCE_SET}.",
        "rs per node": "Number of LSF resource sets on each node.",
        "cpus per rs": f"Number of cores {_RESOURCE_SET}.",
        "bind": f"Binding of the processes {_RESOURCE_SET} to cores.",
        "bind gpus": f"Binding of the processes {_RESOURCE_SET} to GPUs.",
        "walltime": "Time limit, `HH:MM:SS` or seconds.",
        "reservation": "Reservation of the batch system.",
        "exclusive": "Whether the step has its nodes for itself.",
        "nested": "Whether the step runs in a Flux instance of its own.",
        "waitable": "Whether the Flux job is waitable.",
        "priority": "Which samples, or Flux jobs of Maestro, start first: a word such as `HIGH`, or 0 to 1.",
        "qos": "Quality of service of the batch system.",
    },
    "study.run.exclusive": {
        "allocation": "Whether the allocation of the step has its nodes for itself.",
        "launcher": "Whether each launch in the step has its nodes for itself.",
    },
    "global.parameters": {
        "values": "Values, one per combination; all parameters have the same number of values.",
        "label": "Text for names of directories; `%%` becomes the value.",
    },
}
