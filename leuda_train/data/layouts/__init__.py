"""what lies on a disk -> cohort.toml, kept only if every check passes.

public/        public benchmarks, a module each
nnunet.py      two datasets of nnU-Net, source and target
folders.py     any folders, by glob
found.py       what these two have in common: who is test, and what the scans themselves say
cohort_plan.py which scan plays which role, and the file that is written
"""
