from sequent import *  # noqa: F403
from sequent import (
    EnvironmentLayer as EnvironmentLayer,
    Port as Port,
    install_logging as install_logging,
    pack_job as pack_job,
    pack_outcome as pack_outcome,
    pack_parameters as pack_parameters,
    run_job as run_job,
    take_parameters as take_parameters,
    unpack_job as unpack_job,
    unpack_outcome as unpack_outcome,
)
