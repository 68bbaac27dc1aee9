//! The figures that an agent tells Prometheus. `docs/metrics.md` names each of them, and a test holds the two together.
//!
//! ```text
//! Counted   grows with what happens: jobs, bytes, deaths of workers, requests      kept as long as the agent runs
//! Picture   what there is now: guests, pools, the lease                            taken anew for each scrape
//! ```

mod counted;
mod picture;

pub(crate) use counted::{Answered, Counted};
pub(crate) use picture::Picture;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::registry::Registry;

/// What [`text`] makes.
pub(crate) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// All figures, as Prometheus reads them.
pub(crate) fn text(counted: &Counted, picture: &Picture) -> String {
    let host = ("host".into(), picture.host.clone().into());
    let mut registry = Registry::with_prefix_and_labels("nil", std::iter::once(host));
    counted.register(&mut registry);
    picture.register(&mut registry);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;
    use std::time::Duration;

    fn from_repository(path: &str) -> String {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The figures of a host that has one of everything.
    fn everything() -> String {
        let counted = Counted::default();
        let (method, route) = ("GET".to_owned(), "/v1/guests".to_owned());
        counted.answered(Answered { method, route, status: 200, time: Duration::from_micros(300) });
        text(&counted, &Picture::of_everything())
    }

    /// The metrics that there are.
    fn metrics() -> BTreeSet<String> {
        everything()
            .lines()
            .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned()))
            .collect()
    }

    /// The words of a text that may be names of metrics.
    fn names(text: &str) -> BTreeSet<String> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        words.filter(|word| word.starts_with("nil_")).map(str::to_owned).collect()
    }

    #[test]
    fn every_metric_is_documented_and_none_is_that_does_not_exist() {
        assert_eq!(names(&from_repository("docs/metrics.md")), metrics());
    }

    #[test]
    fn every_metric_has_a_sample_with_the_host_s_name() {
        let text = everything();
        for metric in metrics() {
            let sample = text.lines().find(|line| line.starts_with(&metric) && line.contains("host=\"A\""));
            assert!(sample.is_some(), "{metric} has no sample:\n{text}");
        }
    }

    #[test]
    fn a_job_that_has_ended_is_counted_with_its_blackout_and_its_bytes() {
        let handoff = serde_json::json!({
            "source": 0, "target": 1, "epoch": 2, "blackout_ns": 140_000,
            "phases": { "kick_ns": 140_000, "save_ns": 0, "publish_ns": 0, "notice_ns": 0, "load_ns": 0, "claim_ns": 0, "enter_ns": 0 }
        });
        let decouple = serde_json::json!({
            "direction": "decouple", "outcome": "done", "total_bytes": 4096, "copied_bytes": 1000, "zero_bytes": 0,
            "untouched_bytes": 0, "huge_bytes": 0, "chunks": 1, "elapsed_us": 9, "moving_us": 9, "stalled_us": 0,
            "bytes_per_s": 1, "stall_us": { "count": 1, "p50": 200, "p99": 200, "max": 200 }, "slowdown_pct": 0.0,
            "chunk_bytes": { "smallest": 4096, "largest": 4096 }, "undeclared": []
        });
        let report = serde_json::json!({
            "guest": "g", "id": "6e696c00-0000-4000-8000-000000000002", "from": "A", "to": "B", "outcome": "moved",
            "decouple": decouple, "prepare_us": 1, "total_us": 1, "copied_bytes": 0, "handoff": handoff, "recouple": null,
            "remarks": []
        });
        let job = serde_json::json!({
            "id": "6e696c00-0000-4000-8000-000000000003", "kind": "migration", "guest": "g", "host": "A", "to": "B",
            "phase": "ended", "outcome": "done", "created_ms": 1_000, "ended_ms": 1_200, "report": { "migration": report }
        });
        let counted = Counted::default();
        counted.job_ended(&serde_json::from_value(job).expect("a job's report"));
        let text = text(&counted, &Picture::of_everything());
        for sample in [
            "nil_jobs_total{host=\"A\",kind=\"migration\",outcome=\"done\"} 1",
            "nil_blackout_seconds_bucket{host=\"A\",le=\"0.0001\"} 0",
            "nil_blackout_seconds_bucket{host=\"A\",le=\"0.00015\"} 1",
            "nil_moved_bytes_total{host=\"A\",direction=\"decouple\"} 1000",
            "nil_moved_bytes_total{host=\"A\",direction=\"recouple\"} 0",
            "nil_job_seconds_sum{host=\"A\",kind=\"migration\"} 0.2",
            "nil_jobs_running{host=\"A\",kind=\"migration\"} 1",
            "nil_pool_used_bytes{host=\"A\",pool=\"6e696c00-0000-4000-8000-000000000001\",path=\"/dev/shm/pool\"} 1073741824",
        ] {
            assert!(text.contains(sample), "{sample} is not in\n{text}");
        }
    }

    #[test]
    fn the_dashboard_shows_only_metrics_that_exist() {
        let dashboard: serde_json::Value =
            serde_json::from_str(&from_repository("dist/grafana/nil.json")).expect("the dashboard is JSON");
        let mut expressions = Vec::new();
        collect(&dashboard, "expr", &mut expressions);
        assert!(expressions.len() > 10, "{expressions:?}");
        let metrics = metrics();
        for expression in expressions {
            for name in names(&expression) {
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
                assert!(metrics.contains(&name) || metrics.contains(base), "{name} in {expression}");
            }
        }
    }

    #[test]
    fn every_panel_of_the_dashboard_has_a_title_and_a_place_of_its_own() {
        let dashboard: serde_json::Value =
            serde_json::from_str(&from_repository("dist/grafana/nil.json")).expect("the dashboard is JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        let mut taken = BTreeSet::new();
        for panel in panels {
            assert!(panel["title"].as_str().is_some_and(|title| !title.is_empty()), "{panel}");
            let side = |name: &str| panel["gridPos"][name].as_u64().expect("a whole number");
            assert!(side("x") + side("w") <= 24, "{panel}");
            for x in side("x")..side("x") + side("w") {
                for y in side("y")..side("y") + side("h") {
                    assert!(taken.insert((x, y)), "two panels at {x}, {y}");
                }
            }
        }
    }

    /// The texts that have that name, anywhere in a document.
    fn collect(value: &serde_json::Value, name: &str, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get(name).and_then(serde_json::Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, name, found));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, name, found)),
            _ => {}
        }
    }
}
