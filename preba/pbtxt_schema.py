"""Names and types of everything a Triton model configuration may hold; data only.

One line per message: ``field:type``, ``*`` before the type of a repeated field. Facts taken from the official
schema, ``model_config.proto`` of triton-inference-server/common, as packaged in tritonclient 2.73.0.
"""

from __future__ import annotations

MESSAGES: dict[str, str] = {
    "ModelConfig": (
        "name:string platform:string backend:string runtime:string version_policy:ModelVersionPolicy "
        "max_batch_size:int32 input:*ModelInput output:*ModelOutput batch_input:*BatchInput "
        "batch_output:*BatchOutput optimization:ModelOptimizationPolicy "
        "dynamic_batching:ModelDynamicBatching sequence_batching:ModelSequenceBatching "
        "ensemble_scheduling:ModelEnsembling instance_group:*ModelInstanceGroup "
        "default_model_filename:string cc_model_filenames:*ModelConfig.CcModelFilenamesEntry "
        "metric_tags:*ModelConfig.MetricTagsEntry parameters:*ModelConfig.ParametersEntry "
        "model_warmup:*ModelWarmup model_operations:ModelOperations "
        "model_transaction_policy:ModelTransactionPolicy model_repository_agents:ModelRepositoryAgents "
        "response_cache:ModelResponseCache model_metrics:ModelMetrics"
    ),
    "ModelVersionPolicy": (
        "latest:ModelVersionPolicy.Latest all:ModelVersionPolicy.All specific:ModelVersionPolicy.Specific"
    ),
    "ModelVersionPolicy.Latest": "num_versions:uint32",
    "ModelVersionPolicy.All": "",
    "ModelVersionPolicy.Specific": "versions:*int64",
    "ModelInput": (
        "name:string data_type:DataType format:ModelInput.Format dims:*int64 reshape:ModelTensorReshape "
        "is_shape_tensor:bool allow_ragged_batch:bool optional:bool is_non_linear_format_io:bool"
    ),
    "ModelTensorReshape": "shape:*int64",
    "ModelOutput": (
        "name:string data_type:DataType dims:*int64 reshape:ModelTensorReshape label_filename:string "
        "is_shape_tensor:bool is_non_linear_format_io:bool"
    ),
    "BatchInput": "kind:BatchInput.Kind target_name:*string data_type:DataType source_input:*string",
    "BatchOutput": "target_name:*string kind:BatchOutput.Kind source_input:*string",
    "ModelOptimizationPolicy": (
        "graph:ModelOptimizationPolicy.Graph priority:ModelOptimizationPolicy.ModelPriority "
        "cuda:ModelOptimizationPolicy.Cuda "
        "execution_accelerators:ModelOptimizationPolicy.ExecutionAccelerators "
        "input_pinned_memory:ModelOptimizationPolicy.PinnedMemoryBuffer "
        "output_pinned_memory:ModelOptimizationPolicy.PinnedMemoryBuffer "
        "gather_kernel_buffer_threshold:uint32 eager_batching:bool"
    ),
    "ModelOptimizationPolicy.Graph": "level:int32",
    "ModelOptimizationPolicy.Cuda": (
        "graphs:bool busy_wait_events:bool graph_spec:*ModelOptimizationPolicy.Cuda.GraphSpec output_copy_stream:bool"
    ),
    "ModelOptimizationPolicy.Cuda.GraphSpec": (
        "batch_size:int32 input:*ModelOptimizationPolicy.Cuda.GraphSpec.InputEntry "
        "graph_lower_bound:ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound"
    ),
    "ModelOptimizationPolicy.Cuda.GraphSpec.InputEntry": (
        "key:string value:ModelOptimizationPolicy.Cuda.GraphSpec.Shape"
    ),
    "ModelOptimizationPolicy.Cuda.GraphSpec.Shape": "dim:*int64",
    "ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound": (
        "batch_size:int32 input:*ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound.InputEntry"
    ),
    "ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound.InputEntry": (
        "key:string value:ModelOptimizationPolicy.Cuda.GraphSpec.Shape"
    ),
    "ModelOptimizationPolicy.ExecutionAccelerators": (
        "gpu_execution_accelerator:*ModelOptimizationPolicy.ExecutionAccelerators.Accelerator "
        "cpu_execution_accelerator:*ModelOptimizationPolicy.ExecutionAccelerators.Accelerator"
    ),
    "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator": (
        "name:string parameters:*ModelOptimizationPolicy.ExecutionAccelerators.Accelerator.ParametersEntry"
    ),
    "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator.ParametersEntry": "key:string value:string",
    "ModelOptimizationPolicy.PinnedMemoryBuffer": "enable:bool",
    "ModelDynamicBatching": (
        "preferred_batch_size:*int32 max_queue_delay_microseconds:uint64 preserve_ordering:bool "
        "priority_levels:uint64 default_priority_level:uint64 default_queue_policy:ModelQueuePolicy "
        "priority_queue_policy:*ModelDynamicBatching.PriorityQueuePolicyEntry"
    ),
    "ModelQueuePolicy": (
        "timeout_action:ModelQueuePolicy.TimeoutAction default_timeout_microseconds:uint64 "
        "allow_timeout_override:bool max_queue_size:uint32"
    ),
    "ModelDynamicBatching.PriorityQueuePolicyEntry": "key:uint64 value:ModelQueuePolicy",
    "ModelSequenceBatching": (
        "direct:ModelSequenceBatching.StrategyDirect oldest:ModelSequenceBatching.StrategyOldest "
        "max_sequence_idle_microseconds:uint64 control_input:*ModelSequenceBatching.ControlInput "
        "state:*ModelSequenceBatching.State iterative_sequence:bool"
    ),
    "ModelSequenceBatching.StrategyDirect": ("max_queue_delay_microseconds:uint64 minimum_slot_utilization:float"),
    "ModelSequenceBatching.StrategyOldest": (
        "max_candidate_sequences:int32 preferred_batch_size:*int32 max_queue_delay_microseconds:uint64 "
        "preserve_ordering:bool"
    ),
    "ModelSequenceBatching.ControlInput": "name:string control:*ModelSequenceBatching.Control",
    "ModelSequenceBatching.Control": (
        "kind:ModelSequenceBatching.Control.Kind int32_false_true:*int32 fp32_false_true:*float "
        "bool_false_true:*bool data_type:DataType"
    ),
    "ModelSequenceBatching.State": (
        "input_name:string output_name:string data_type:DataType dims:*int64 "
        "initial_state:*ModelSequenceBatching.InitialState use_same_buffer_for_input_output:bool "
        "use_growable_memory:bool"
    ),
    "ModelSequenceBatching.InitialState": (
        "data_type:DataType dims:*int64 zero_data:bool data_file:string name:string"
    ),
    "ModelEnsembling": "step:*ModelEnsembling.Step max_inflight_requests:uint32",
    "ModelEnsembling.Step": (
        "model_name:string model_version:int64 input_map:*ModelEnsembling.Step.InputMapEntry "
        "output_map:*ModelEnsembling.Step.OutputMapEntry model_namespace:string"
    ),
    "ModelEnsembling.Step.InputMapEntry": "key:string value:string",
    "ModelEnsembling.Step.OutputMapEntry": "key:string value:string",
    "ModelInstanceGroup": (
        "name:string kind:ModelInstanceGroup.Kind count:int32 rate_limiter:ModelRateLimiter gpus:*int32 "
        "secondary_devices:*ModelInstanceGroup.SecondaryDevice profile:*string passive:bool "
        "host_policy:string"
    ),
    "ModelRateLimiter": "resources:*ModelRateLimiter.Resource priority:uint32",
    "ModelRateLimiter.Resource": "name:string global:bool count:uint32",
    "ModelInstanceGroup.SecondaryDevice": (
        "kind:ModelInstanceGroup.SecondaryDevice.SecondaryDeviceKind device_id:int64"
    ),
    "ModelConfig.CcModelFilenamesEntry": "key:string value:string",
    "ModelConfig.MetricTagsEntry": "key:string value:string",
    "ModelConfig.ParametersEntry": "key:string value:ModelParameter",
    "ModelParameter": "string_value:string",
    "ModelWarmup": "name:string batch_size:uint32 inputs:*ModelWarmup.InputsEntry count:uint32",
    "ModelWarmup.InputsEntry": "key:string value:ModelWarmup.Input",
    "ModelWarmup.Input": ("data_type:DataType dims:*int64 zero_data:bool random_data:bool input_data_file:string"),
    "ModelOperations": "op_library_filename:*string",
    "ModelTransactionPolicy": "decoupled:bool",
    "ModelRepositoryAgents": "agents:*ModelRepositoryAgents.Agent",
    "ModelRepositoryAgents.Agent": "name:string parameters:*ModelRepositoryAgents.Agent.ParametersEntry",
    "ModelRepositoryAgents.Agent.ParametersEntry": "key:string value:string",
    "ModelResponseCache": "enable:bool",
    "ModelMetrics": "metric_control:*ModelMetrics.MetricControl",
    "ModelMetrics.MetricControl": (
        "metric_identifier:ModelMetrics.MetricControl.MetricIdentifier "
        "histogram_options:ModelMetrics.MetricControl.HistogramOptions"
    ),
    "ModelMetrics.MetricControl.MetricIdentifier": "family:string",
    "ModelMetrics.MetricControl.HistogramOptions": "buckets:*double",
}

ENUMS: dict[str, str] = {
    "DataType": (
        "TYPE_INVALID TYPE_BOOL TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8 TYPE_INT16 "
        "TYPE_INT32 TYPE_INT64 TYPE_FP16 TYPE_FP32 TYPE_FP64 TYPE_STRING TYPE_BF16"
    ),
    "ModelInput.Format": "FORMAT_NONE FORMAT_NHWC FORMAT_NCHW",
    "BatchInput.Kind": (
        "BATCH_ELEMENT_COUNT BATCH_ACCUMULATED_ELEMENT_COUNT BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO "
        "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE BATCH_ITEM_SHAPE BATCH_ITEM_SHAPE_FLATTEN"
    ),
    "BatchOutput.Kind": "BATCH_SCATTER_WITH_INPUT_SHAPE",
    "ModelOptimizationPolicy.ModelPriority": "PRIORITY_DEFAULT PRIORITY_MAX PRIORITY_MIN",
    "ModelQueuePolicy.TimeoutAction": "REJECT DELAY",
    "ModelSequenceBatching.Control.Kind": (
        "CONTROL_SEQUENCE_START CONTROL_SEQUENCE_READY CONTROL_SEQUENCE_END CONTROL_SEQUENCE_CORRID"
    ),
    "ModelInstanceGroup.Kind": "KIND_AUTO KIND_GPU KIND_CPU KIND_MODEL",
    "ModelInstanceGroup.SecondaryDevice.SecondaryDeviceKind": "KIND_NVDLA",
}
