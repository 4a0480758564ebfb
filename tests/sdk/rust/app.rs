// An app with RudderStack's SDK for Rust: `app SCENARIO`; the page above says what a scenario is. The SDK makes one
// request per call of `send`, which blocks; it has no message ids.
use chrono::{DateTime, Utc};
use rudderanalytics::client::RudderAnalytics;
use rudderanalytics::message::{Alias, Batch, BatchMessage, Group, Identify, Message, Page, Screen, Track};
use serde_json::{json, Value};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

fn text(call: &Value, name: &str) -> String {
    call[name].as_str().unwrap_or("").to_string()
}

fn optional(call: &Value, name: &str) -> Option<Value> {
    call.get(name).filter(|value| !value.is_null()).cloned()
}

fn message(call: &Value) -> BatchMessage {
    let user_id = Some(text(call, "userId"));
    let original_timestamp = text(call, "timestamp").parse::<DateTime<Utc>>().ok();
    let context = optional(call, "context");
    let (properties, traits) = (optional(call, "properties"), optional(call, "traits"));
    match call["type"].as_str().unwrap() {
        "identify" => BatchMessage::Identify(Identify { user_id, traits, original_timestamp, context, ..Default::default() }),
        "track" => BatchMessage::Track(Track { user_id, event: text(call, "event"), properties, original_timestamp, context, ..Default::default() }),
        "page" => BatchMessage::Page(Page { user_id, name: text(call, "name"), properties, original_timestamp, context, ..Default::default() }),
        "screen" => BatchMessage::Screen(Screen { user_id, name: text(call, "name"), properties, original_timestamp, context, ..Default::default() }),
        "group" => BatchMessage::Group(Group { user_id, group_id: text(call, "groupId"), traits, original_timestamp, context, ..Default::default() }),
        "alias" => BatchMessage::Alias(Alias { user_id: text(call, "userId"), previous_id: text(call, "previousId"), original_timestamp, context, ..Default::default() }),
        other => panic!("unknown call {other}"),
    }
}

fn alone(message: BatchMessage) -> Message {
    match message {
        BatchMessage::Identify(call) => Message::Identify(call),
        BatchMessage::Track(call) => Message::Track(call),
        BatchMessage::Page(call) => Message::Page(call),
        BatchMessage::Screen(call) => Message::Screen(call),
        BatchMessage::Group(call) => Message::Group(call),
        BatchMessage::Alias(call) => Message::Alias(call),
    }
}

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let scenario: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let calls = scenario["calls"].as_array().unwrap();
    let (batch, threads) = (scenario["batch"].as_u64().unwrap() as usize, scenario["threads"].as_u64().unwrap() as usize);
    let pause = Duration::from_secs_f64(scenario["pause_s"].as_f64().unwrap());
    let clients: Vec<RudderAnalytics> = scenario["urls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|url| RudderAnalytics::load(text(&scenario, "key"), url.as_str().unwrap().to_string()))
        .collect();
    let (failed, made) = (Mutex::new(BTreeSet::new()), AtomicUsize::new(0));
    let half = (calls.len() + 1) / 2;
    std::thread::scope(|scope| {
        for number in 0..threads {
            let (clients, failed, made) = (&clients, &failed, &made);
            let share: Vec<&Value> = calls.iter().skip(number).step_by(threads).collect();
            scope.spawn(move || {
                for some in share.chunks(batch) {
                    for client in clients {
                        let messages: Vec<BatchMessage> = some.iter().map(|call| message(call)).collect();
                        let sent = if batch == 1 {
                            client.send(&alone(messages.into_iter().next().unwrap()))
                        } else {
                            client.send(&Message::Batch(Batch { batch: messages, ..Default::default() }))
                        };
                        if let Err(error) = sent {
                            eprintln!("{error}");
                            failed.lock().unwrap().extend(some.iter().map(|call| text(call, "messageId")));
                        }
                    }
                    let before = made.fetch_add(some.len(), Ordering::SeqCst);
                    if before < half && before + some.len() >= half {
                        println!("half");
                    }
                    std::thread::sleep(pause);
                }
            });
        }
    });
    let began = Instant::now(); // nothing is kept, so there is nothing to flush
    println!("{}", json!({"failed": *failed.lock().unwrap(), "refused": [], "shutdown_s": began.elapsed().as_secs_f64()}));
}
