"""What Ray is told of the deployment, without starting Ray."""

from __future__ import annotations

from service.app import application
from service.settings import Settings


def test_without_max_replicas_their_number_is_fixed() -> None:
    config = application(Settings(replicas=2))._bound_deployment._deployment_config
    assert (config.num_replicas, config.autoscaling_config) == (2, None)


def test_with_max_replicas_ray_asks_the_policy_of_heed() -> None:
    settings = Settings(replicas=2, max_replicas=5, scale_up_wait_s=0.5, scale_down_after_s=9)
    scaling = application(settings)._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.downscale_delay_s) == (2, 5, 9)
    assert scaling.policy.get_policy().__name__ == "Policy"
    assert scaling.policy.policy_kwargs == {"up_wait_s": 0.5}


def test_new_settings_start_before_the_old_stop() -> None:
    assert application(Settings())._bound_deployment._deployment_config.max_surge_percent == 100
