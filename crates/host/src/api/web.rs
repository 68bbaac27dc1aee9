//! The page that an agent shows to a person: `GET /`.
//!
//! Its files are part of the program, so it needs nothing from elsewhere, and the policy that comes with it lets the browser
//! load nothing from elsewhere either. What it shows it asks the API for, as its caller: a viewer may.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};

/// Everything that the page may do: be styled, run, ask and draw with what comes from this agent.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`
pub(super) async fn page() -> Response {
    file("text/html; charset=utf-8", include_str!("web/page.html"))
}

/// `GET /page.css`
pub(super) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("web/page.css"))
}

/// `GET /page.js`
pub(super) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("web/page.js"))
}

/// `GET /icon.svg`
pub(super) async fn icon() -> Response {
    file("image/svg+xml", include_str!("web/icon.svg"))
}

/// A picture that the agent has drawn.
pub(super) fn picture(svg: String) -> Response {
    file("image/svg+xml", svg)
}

fn file(kind: &'static str, content: impl IntoResponse) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // Another version of the agent has another page.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_has_nothing_inline() {
        for file in [include_str!("web/page.html"), include_str!("web/page.css"), include_str!("web/page.js")] {
            assert!(!file.contains("http://") && !file.contains("https://") && !file.contains("//cdn"), "{file}");
        }
        let page = include_str!("web/page.html");
        for inline in ["<style", " style=", "onclick", "onload", "<script>", "javascript:"] {
            assert!(!page.contains(inline), "{inline} does not work under the page's policy");
        }
    }

    #[test]
    fn what_comes_from_the_agent_never_becomes_markup() {
        let script = include_str!("web/page.js");
        for way in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"]
        {
            assert!(!script.contains(way), "{way} makes markup of text");
        }
    }
}
