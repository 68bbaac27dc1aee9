//! The description of the API that is kept in the repository.

use std::path::Path;

#[test]
fn the_description_of_the_api_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api/openapi.json");
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == nil_host::description(),
        "docs/api/openapi.json is out of date; bring it up to date with: cargo run -- host openapi > docs/api/openapi.json"
    );
}
