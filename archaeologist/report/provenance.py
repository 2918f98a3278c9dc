"""What a report was made from, so that its numbers can be made again; no path of the machine. Pure."""

from archaeologist.findings.wording import counted
from archaeologist.report.campaign import Campaign


def provenance(campaign: Campaign) -> list[tuple[str, str]]:
    """Names and values, in order."""
    rows = [("campaign", f"{campaign.hero_id}/{campaign.campaign_id}")]
    newest = campaign.newest
    if newest is None:
        return [*rows, ("artifacts", "none could be read")]
    versions = newest.versions
    libraries = {name: getattr(versions, name) for name in ("python", "numpy", "numba", "torch", "transformers")}
    coverage = newest.coverage
    rows += [
        ("newest checkpoint", f"step {newest.checkpoint_step}, fingerprint {newest.fingerprint}"),
        ("architecture", newest.architecture or "not known"),
        ("parameters", f"{newest.global_weight_stats.param_count:,} in {counted(len(newest.weight_stats), 'block')}"),
        (
            "read",
            f"{coverage.tensors_read} of {counted(coverage.tensors_listed, 'tensor')}, {coverage.bytes_read:,} bytes",
        ),
        ("analysed by", f"archaeologist {versions.archaeologist} on {newest.device}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in libraries.items() if version)),
    ]
    if newest.model_ref:
        rows.append(("model", newest.model_ref))
    if newest.forward is not None:
        ran = newest.forward
        rows.append(("forward pass", f"{ran.way}, {ran.dtype}, attention {ran.attention}, {ran.device}"))
    if newest.probe_info is not None:
        probes = newest.probe_info
        tokens = counted(probes.total_tokens, "token")
        rows.append(("probes", f"{probes.dataset_id}: {tokens}, SHA-256 {probes.sha256[:16] or 'not known'}"))
    rows += [(f"not computed: {name}", reason) for name, reason in newest.not_computed.items()]
    rows += [("warning", warning) for warning in newest.warnings]
    left_out = {one.file: one for one in (*campaign.timeline.left_out, *campaign.stability.left_out)}
    # The reason names paths of this machine; the code does not.
    rows += [("left out", f"{one.file}: {one.code}") for one in left_out.values()]
    return rows
