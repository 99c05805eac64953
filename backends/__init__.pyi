from sequent import *  # noqa: F403
from sequent import (
    EnvironmentLayer as EnvironmentLayer,
    Port as Port,
    install_logging as install_logging,
    pack_parameters as pack_parameters,
    run_job as run_job,
    take_parameters as take_parameters,
)
