from sequent import *  # noqa: F403
from sequent import install_logging as install_logging, run_job as run_job
