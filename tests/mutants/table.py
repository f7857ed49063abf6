"""The modules that are mutated, and the tests that should notice: a row each, both as paths."""

from __future__ import annotations

__all__ = ["TESTS_OF"]

TESTS_OF: dict[str, tuple[str, ...]] = {
    # below platform/stoker: below tests
    "dataset/order/permutation.py": (
        "dataset/test_order_bounds.py",
        "dataset/test_permutation.py",
        "dataset/test_order.py",
    ),
    "dataset/order/epoch.py": (
        "dataset/test_order_bounds.py",
        "dataset/test_order.py",
    ),
    "dataset/decode/crop.py": (
        "dataset/decode/test_crop_boxes.py",
        "dataset/decode/test_crop.py",
        "dataset/decode/test_training.py",
    ),
    "dataset/decode/evaluation.py": (
        "dataset/decode/test_crop_boxes.py",
        "dataset/decode/test_crop.py",
        "dataset/decode/test_image.py",
        "dataset/decode/test_thin_images.py",
    ),
    "dataset/format/exif.py": (
        "dataset/format/test_image_header.py",
        "dataset/format/test_image_header_fuzz.py",
        "dataset/decode/test_orientation.py",
        "dataset/decode/test_limits.py",
    ),
    "dataset/format/parts.py": (
        "dataset/format/test_image_header.py",
        "dataset/format/test_image_header_fuzz.py",
        "dataset/decode/test_orientation.py",
        "dataset/decode/test_limits.py",
    ),
    "dataset/format/image_header.py": (
        "dataset/format/test_image_header.py",
        "dataset/format/test_image_header_fuzz.py",
        "dataset/decode/test_orientation.py",
        "dataset/decode/test_limits.py",
    ),
    "dataset/format/jpeg.py": (
        "dataset/format/test_jpeg_bounds.py",
        "dataset/format/test_jpeg.py",
        "dataset/decode/test_training.py",
    ),
    "dataset/format/manifest.py": (
        "dataset/format/test_manifest_bounds.py",
        "dataset/format/test_manifest.py",
    ),
    "dataset/format/index.py": (
        "dataset/format/test_manifest_bounds.py",
        "dataset/format/test_index.py",
        "dataset/format/test_pages.py",
    ),
    "dataset/format/pages.py": ("dataset/format/test_pages.py",),
    "dataset/position.py": ("dataset/test_loader_ends.py", "dataset/test_loader_closing.py"),
    "dataset/index_rows.py": (
        "dataset/test_index_rows_bounds.py",
        "dataset/test_index_rows.py",
    ),
    "dataset/prepare/overlap.py": (
        "dataset/prepare/test_overlap_bounds.py",
        "dataset/prepare/test_overlap.py",
    ),
    "dataset/prepare/plan.py": (
        "dataset/prepare/test_plan_bounds.py",
        "dataset/prepare/test_shards.py",
        "dataset/prepare/test_select.py",
    ),
    "dataset/prepare/tar_file.py": (
        "dataset/prepare/test_source_bounds.py",
        "dataset/prepare/test_tars.py",
        "dataset/prepare/test_webdataset.py",
    ),
    "dataset/prepare/sources/layout.py": (
        "dataset/prepare/test_list_bounds.py",
        "dataset/prepare/test_folder.py",
        "dataset/prepare/test_links.py",
    ),
    "dataset/prepare/sources/columns.py": (
        "dataset/prepare/test_columns_bounds.py",
        "dataset/prepare/test_labels.py",
        "dataset/prepare/test_list.py",
        "dataset/prepare/test_parquet.py",
    ),
    "dataset/prepare/sources/csv_jsonl.py": (
        "dataset/prepare/test_list_bounds.py",
        "dataset/prepare/test_source_bounds.py",
        "dataset/prepare/test_list.py",
        "dataset/prepare/test_labels.py",
    ),
    "dataset/prepare/sources/tar_samples.py": (
        "dataset/prepare/test_source_bounds.py",
        "dataset/prepare/test_webdataset.py",
        "dataset/prepare/test_tars.py",
    ),
    "dataset/prepare/sources/webdataset.py": (
        "dataset/prepare/test_source_bounds.py",
        "dataset/prepare/test_webdataset.py",
        "dataset/prepare/test_tars.py",
    ),
    "dataset/prepare/sources/parquet_labels.py": (
        "dataset/prepare/test_parquet_labels_bounds.py",
        "dataset/prepare/test_labels.py",
        "dataset/prepare/test_parquet.py",
    ),
    "training/fault_tolerance/failure_policy.py": (
        "training/fault_tolerance/test_policy_bounds.py",
        "training/fault_tolerance/test_failure_policy.py",
    ),
    "training/fault_tolerance/circumstances.py": (
        "training/fault_tolerance/test_circumstances_bounds.py",
        "training/fault_tolerance/test_failure_policy.py",
    ),
    "training/fault_tolerance/capacity.py": (
        "training/fault_tolerance/test_capacity_bounds.py",
        "training/fault_tolerance/test_capacity.py",
    ),
    "training/fault_tolerance/head.py": ("training/fault_tolerance/test_policy_bounds.py",),
    "training/fault_tolerance/left_out.py": ("training/fault_tolerance/test_capacity_bounds.py",),
    "storage/retry.py": (
        "storage/test_retry_bounds.py",
        "storage/test_reads.py",
        "storage/test_absence.py",
        "storage/test_answers.py",
        "storage/test_location.py",
        "storage/test_local_files.py",
    ),
    "storage/ranges.py": (
        "storage/test_ranges.py",
        "storage/test_reads.py",
        "storage/test_answers.py",
        "storage/test_location.py",
        "storage/test_in_flight.py",
        "storage/test_local_files.py",
    ),
    "storage/cache.py": (
        "storage/test_cache_bounds.py",
        "storage/test_cache_folder.py",
        "storage/test_cache.py",
    ),
    "storage/cache_folder.py": (
        "storage/test_cache_folder_bounds.py",
        "storage/test_cache_bounds.py",
        "storage/test_cache_folder.py",
        "storage/test_cache.py",
    ),
    "dataset/label_counts.py": ("dataset/test_label_counts.py",),
    "models/losses.py": ("training/step/test_class_weights.py", "models/test_build.py"),
    "models/precision.py": ("evaluation/test_precision.py",),
    "predict/parity.py": ("evaluation/test_precision.py",),
    "training/numa.py": ("training/test_numa.py",),
    "training/fault_tolerance/watchdog.py": (
        "training/fault_tolerance/test_watchdog_bounds.py",
        "training/fault_tolerance/test_compiling.py",
        "training/fault_tolerance/test_guard.py",
    ),
    "training/step/class_weights.py": ("training/step/test_class_weights.py",),
    "training/step/communication.py": ("training/step/test_communication.py",),
    "training/step/compilation.py": ("training/step/test_compile.py", "training/fault_tolerance/test_compiling.py"),
    "training/step/determinism.py": ("training/step/test_determinism.py",),
    "training/step/prefetch.py": ("training/step/test_prefetch.py",),
    "training/optim/schedule.py": ("training/optim/test_schedule_bounds.py",),
    "training/optim/optimizers.py": (
        "training/optim/test_optimizer_bounds.py",
        "training/optim/test_optimizers.py",
    ),
    "training/optim/clipping.py": ("training/optim/test_clipping.py",),
    "training/optim/ema.py": ("training/optim/test_ema.py",),
    "training/optim/lamb.py": (
        "training/optim/test_optimizer_bounds.py",
        "training/optim/test_optimizers.py",
    ),
    "training/augment/augmentation.py": (
        "training/augment/test_draws.py",
        "training/augment/test_augmentation.py",
    ),
    "training/augment/mixing.py": (
        "training/augment/test_draws.py",
        "training/augment/test_augmentation.py",
    ),
    "training/augment/operations.py": (
        "training/augment/test_draws.py",
        "training/augment/test_augmentation.py",
    ),
    "training/step/exact_sums.py": (
        "training/step/test_exact_sums_bounds.py",
        "training/step/test_exact_sums.py",
        "training/step/test_plain_loop.py",
    ),
    "training/step/stepper.py": (
        "training/step/test_stepper_bounds.py",
        "training/step/test_plain_loop.py",
        "training/step/test_options.py",
    ),
    "training/step/batch_norm.py": (
        "training/step/test_batch_norm.py",
        "training/step/test_exact_sums.py",
        "training/step/test_plain_loop.py",
    ),
    "training/fault_tolerance/lease.py": (
        "training/fault_tolerance/test_lease_bounds.py",
        "training/fault_tolerance/test_lease.py",
    ),
    "registry/registry.py": ("registry/test_registry_bounds.py", "registry/test_alias.py", "registry/test_registry.py"),
    "registry/alias.py": ("registry/test_alias.py", "registry/test_registry_bounds.py", "registry/test_registry.py"),
    "registry/publishing.py": ("registry/test_registry.py",),
    "registry/copying.py": ("registry/test_copying.py", "registry/test_registry.py"),
    "registry/parents.py": ("registry/test_parents.py",),
    "registry/card.py": ("registry/test_registry_bounds.py", "registry/test_cards.py"),
    "registry/listing.py": ("registry/test_registry_bounds.py",),
    "evaluation.py": ("evaluation/test_evaluation_bounds.py",),
}
