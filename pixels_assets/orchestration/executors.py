"""The executor: one process for a whole run unless run config asks for more. Parallel work lives inside the steps and across runs."""

import dagster as dg

_EITHER = dg.multi_or_in_process_executor

in_process_by_default = dg.ExecutorDefinition(
    name="in_process_by_default",
    description="All steps in one process, or, with `execution: {config: {multiprocess: {}}}`, each in its own.",
    config_schema=dg.Field(_EITHER.config_schema.config_type, default_value={"in_process": {}}),
    requirements=_EITHER.get_requirements,
    executor_creation_fn=_EITHER.executor_creation_fn,
)
