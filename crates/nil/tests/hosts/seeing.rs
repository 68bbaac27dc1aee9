//! What a person and their programs see of hosts that run: `nil top`, metrics, and the agent's page, in a browser too.

use crate::http::ask;
use crate::kvm::has_kvm;
use crate::playground::{Playground, kill};
use rustix::process::Signal;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

#[test]
fn top_shows_hosts_pools_guests_and_the_migration_that_is_over() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agents = [playground.agent("A"), playground.agent("B")];
    playground.run_vm("rover", "A");
    playground.json(&["migrate", "rover", "--to", "B"]);
    let seen = playground.json(&["top", "--once"]);
    assert_eq!(seen["hosts"].as_array().expect("hosts").len(), 2);
    assert_eq!(seen["pools"][0]["hosts"], serde_json::json!(["A", "B"]));
    assert_eq!((&seen["guests"][0]["name"], &seen["guests"][0]["host"]), (&"rover".into(), &"B".into()));
    let past = &seen["past"][0];
    assert_eq!((&past["from"], &past["to"], &past["ending"]), (&"A".into(), &"B".into(), &"moved".into()));
    assert!(past["blackout_ns"].as_u64().is_some_and(|blackout| blackout > 0), "{past}");
    let picture = playground.nil(&["top", "--once"]).stdout;
    assert!(picture.contains("A → B") && picture.contains("rover") && !picture.contains("quit"), "{picture}");
}

#[test]
fn top_without_a_terminal_says_what_to_do_instead() {
    let answer = Playground::new().nil(&["top"]);
    assert!(!answer.status.success() && answer.stderr.contains("nil top --once"), "{}", answer.stderr);
}

#[test]
fn metrics_tell_of_guests_jobs_and_deaths() {
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agents = [playground.agent("A"), playground.agent("B")];
    playground.run_vm("rover", "A");
    let victim = playground.run_vm("victim", "A")["worker_pid"].as_i64().expect("its worker");
    playground.json(&["migrate", "rover", "--to", "B"]);
    let metrics = |host| ask(&playground, host, "GET", "/metrics", "").body();
    let (a, b) = (metrics("A"), metrics("B"));
    let has = |text: &str, sample: &str| assert!(text.lines().any(|line| line == sample), "{sample} is not in\n{text}");
    has(&a, "nil_guests{host=\"A\",state=\"running\"} 1");
    has(&b, "nil_guests{host=\"B\",state=\"running\"} 1");
    has(&a, "nil_jobs_total{host=\"A\",kind=\"migration\",outcome=\"done\"} 1");
    has(&a, "nil_blackout_seconds_count{host=\"A\"} 1");
    has(&b, "nil_blackout_seconds_count{host=\"B\"} 0");
    has(&a, "nil_worker_deaths_total{host=\"A\"} 0");
    kill(i32::try_from(victim).expect("a pid"), Signal::KILL);
    playground.await_state("victim", "lost");
    let a = metrics("A");
    has(&a, "nil_worker_deaths_total{host=\"A\"} 1");
    has(&a, "nil_api_requests_total{host=\"A\",method=\"GET\",route=\"/metrics\",status=\"200\"} 1");
    assert!(!a.contains("victim") && !a.contains("rover"), "there would be as many metrics as there ever were guests");
}

#[test]
fn an_agent_knows_the_hosts_of_its_pools_and_draws_them() {
    let playground = Playground::new();
    let (_a, b) = (playground.agent("A"), playground.agent("B"));
    let hosts = || ask(&playground, "A", "GET", "/v1/hosts", "").json();
    let told = |hosts: &serde_json::Value, at: usize| {
        (hosts[at]["name"].clone(), hosts[at]["here"].clone(), hosts[at]["life"].clone())
    };
    let known = hosts();
    assert_eq!(told(&known, 0), ("A".into(), true.into(), "alive".into()));
    assert_eq!(told(&known, 1), ("B".into(), false.into(), "alive".into()));
    let picture = ask(&playground, "A", "GET", "/v1/fabric.svg", "");
    assert!(picture.head.contains("image/svg+xml") && picture.head.contains("default-src 'none'"), "{}", picture.head);
    let picture = picture.body();
    assert!(picture.contains("<svg") && picture.contains(">A<") && picture.contains(">B<"), "{picture}");
    b.end(Signal::KILL);
    assert_eq!(told(&hosts(), 1), ("B".into(), false.into(), "gone".into()));
}

#[test]
fn the_page_is_served_with_a_policy_that_lets_nothing_in_from_elsewhere() {
    let playground = Playground::new();
    let _agent = playground.agent("A");
    for (path, kind, content) in [
        ("/", "text/html", "<title>nil</title>"),
        ("/page.css", "text/css", "--paper"),
        ("/page.js", "text/javascript", "EventSource"),
        ("/icon.svg", "image/svg+xml", "<svg"),
    ] {
        let answer = ask(&playground, "A", "GET", path, "");
        let head = answer.head.to_lowercase();
        assert!(answer.status == 200 && head.contains(kind), "{path}: {head}");
        assert!(
            head.contains("content-security-policy: default-src 'none'") && head.contains("nosniff"),
            "{path}: {head}"
        );
        assert!(answer.body().contains(content), "{path}");
    }
    assert_eq!(ask(&playground, "A", "POST", "/", "").status, 405);
}

#[test]
fn a_browser_shows_the_page_and_finds_nothing_wrong_with_it() {
    let Some(browser) = browser() else { return };
    if !has_kvm() {
        return;
    }
    let playground = Playground::new();
    let _agents = [playground.agent("A"), playground.agent("B")];
    playground.run_vm("rover", "A");
    playground.json(&["migrate", "rover", "--to", "B"]);
    let socket = playground.host_dir("A").join("agent.sock");
    let shown = ["host A", ">rover<", "A → B", ">B<", "done", "v1/fabric.svg?", "class=\"live\""];
    // A machine with much to do takes long: then it is given longer.
    for patience in [3, 10, 30] {
        let (page, log) = open(&browser, relay(&socket, Duration::from_secs(patience)));
        // Errors of scripts, and everything that the policy has kept from happening.
        assert!(!log.contains("CONSOLE"), "{log}");
        let missing: Vec<&str> = shown.into_iter().filter(|text| !page.contains(text)).collect();
        match missing[..] {
            [] => return,
            _ if patience < 30 => {}
            _ => panic!("{missing:?} is not on the page:\n{page}\n{log}"),
        }
    }
}

/// The page as it is when all of it has been loaded, and what the browser has to say.
fn open(browser: &Path, address: SocketAddr) -> (String, String) {
    let profile = tempfile::tempdir().expect("a directory");
    let opened = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ])
        .args(["--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{address}/"))
        .stdin(Stdio::null())
        .output()
        .expect("the browser runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&opened.stdout), text(&opened.stderr))
}

/// A browser; a test that needs one ends here where there is none.
fn browser() -> Option<PathBuf> {
    let known = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).flat_map(|dir| known.map(|name| dir.join(name))).find(|file| file.is_file());
    if found.is_none() {
        println!("skipped: there is no browser to show the agent's page; install one with: apt-get install chromium");
    }
    found
}

/// A TCP address at which a Unix socket answers, as long as the test lives: browsers know no other ones. It takes so long
/// to pass on that an icon is wanted: the page is loaded only when that has come.
fn relay(socket: &Path, icon_takes: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
    let (address, socket) = (listener.local_addr().expect("its address"), socket.to_path_buf());
    thread::spawn(move || {
        for browser in listener.incoming().flatten() {
            let Ok(agent) = UnixStream::connect(&socket) else { continue };
            thread::spawn(move || exchange(&browser, &agent, icon_takes));
        }
    });
    address
}

/// Passes on what each says to the other, until both have said everything. Whoever hangs up early has heard enough.
fn exchange(browser: &TcpStream, agent: &UnixStream, icon_takes: Duration) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = pass_on_requests(browser, agent, icon_takes);
            let _ = agent.shutdown(Shutdown::Write);
        });
        let (mut answers, mut browser) = (agent, browser);
        let _ = io::copy(&mut answers, &mut browser);
        let _ = browser.shutdown(Shutdown::Write);
    });
}

fn pass_on_requests(mut browser: &TcpStream, mut agent: &UnixStream, icon_takes: Duration) -> io::Result<()> {
    let mut bytes = [0; 16 << 10];
    loop {
        let count = browser.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        if bytes[..count].starts_with(b"GET /icon.svg") {
            thread::sleep(icon_takes);
        }
        agent.write_all(&bytes[..count])?;
    }
}
