"""The part of tests/kernel that is run in emulated machines."""

from __future__ import annotations

from typing import Final

TESTED: Final = (
    "test_active.py",
    "test_causes.py",
    "test_clients.py",
    "test_discovery.py",
    "test_endings.py",
    "test_health.py",
    "test_loading.py",
    "test_namespaces.py",
    "test_outcomes.py",
    "test_publication.py",
    "test_records.py",
    "test_removal.py",
    "test_scheduling.py",
    "test_sockets.py",
    "test_tiers.py",
    "test_trace.py",
    "transparency",
)
"""Tests that depend on the kernel."""
ABOUT_THE_SIDECAR: Final = (
    "test_agreement.py",
    "test_answers.py",
    "test_automatic.py",
    "test_bursts.py",
    "test_catalog.py",
    "test_check.py",
    "test_cli.py",
    "test_closing.py",
    "test_complete.py",
    "test_config.py",
    "test_daemon.py",
    "test_exhaustion.py",
    "test_foreign_registrations.py",
    "test_handover.py",
    "test_hold.py",
    "test_hosts_file.py",
    "test_instances.py",
    "test_last_known.py",
    "test_lean.py",
    "test_limits.py",
    "test_listening.py",
    "test_log.py",
    "test_metrics.py",
    "test_monitoring.py",
    "test_neighbours.py",
    "test_plan.py",
    "test_readme.py",
    "test_replacement.py",
    "test_rights.py",
    "test_room.py",
    "test_secrets.py",
    "test_service_manager.py",
    "test_status.py",
    "test_stopping.py",
    "test_supply.py",
    "test_upgrades.py",
    "test_web.py",
)
"""Tests that are the same on every kernel, and slow in an emulated machine."""
LEFT_OUT: Final = {
    "test_demo.py": "paced for people to watch; what it shows is what the other tests test",
    "test_bcc.py": "about BCC on the host, which takes minutes here; that it loads is a feature",
    "test_documents.py": "about the documents, with Consul and DNS",
    "test_discovery.py::test_consul_changes_are_followed": "about Consul",
    "test_discovery.py::test_stopped_and_restarted_consul_changes_nothing": "about Consul",
    "test_discovery.py::test_srv_targets_are_reached_in_proportion": "as with Consul, and about DNS",
    "test_discovery.py::test_large_srv_answer_is_complete": "about DNS",
    "test_discovery.py::test_consul_dns_is_followed": "about Consul",
    "test_discovery.py::test_forbidden_instances_in_consul_are_refused": "about Consul",
}
"""Further tests whose use of the kernel is covered by others."""
