// An app with one of the Java SDKs: `App SCENARIO`; the page above says what a scenario is. RudderStack's SDK has the same
// interface: tests/sdk/sdk_apps.py compiles this file with either's names, and keeps the lines that end in its name.
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.ToNumberPolicy;
import com.google.gson.reflect.TypeToken;
import com.segment.analytics.Analytics;
import com.segment.analytics.Callback;
import com.segment.analytics.messages.*;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicInteger;

public class App {
  static final Set<String> failed = ConcurrentHashMap.newKeySet(), refused = ConcurrentHashMap.newKeySet();
  static final AtomicInteger told = new AtomicInteger(), made = new AtomicInteger();

  @SuppressWarnings("unchecked")
  public static void main(String[] arguments) throws Exception {
    Gson gson = new GsonBuilder().setObjectToNumberStrategy(ToNumberPolicy.LONG_OR_DOUBLE).create();
    Map<String, Object> scenario =
        gson.fromJson(Files.readString(Path.of(arguments[0])), new TypeToken<Map<String, Object>>() {}.getType());
    List<Map<String, Object>> calls = (List<Map<String, Object>>) scenario.get("calls");
    List<Analytics> clients = new ArrayList<>();
    for (String url : (List<String>) scenario.get("urls")) clients.add(client(scenario, url));
    int threads = number(scenario, "threads");
    long pause_ms = Math.round(((Number) scenario.get("pause_s")).doubleValue() * 1000);
    ExecutorService workers = Executors.newFixedThreadPool(threads);
    for (int k = 0; k < threads; k++) {
      int first = k;
      workers.submit(() -> {
        for (int n = first; n < calls.size(); n += threads) {
          Map<String, Object> call = calls.get(n);
          for (Analytics client : clients) {
            try {
              client.enqueue(message(call));
            } catch (RuntimeException error) {
              refused.add((String) call.get("messageId"));
              told.incrementAndGet();
              System.err.println(call.get("messageId") + ": " + error);
            }
            // RudderStack interrupts the caller's thread for an event that is too large, and queues nothing.
            if (Thread.interrupted()) {
              refused.add((String) call.get("messageId"));
              told.incrementAndGet();
            }
          }
          if (made.incrementAndGet() == (calls.size() + 1) / 2) System.out.println("half");
          try {
            Thread.sleep(pause_ms);
          } catch (InterruptedException error) {
            throw new IllegalStateException(error);
          }
        }
        return null;
      });
    }
    workers.shutdown();
    workers.awaitTermination(10, TimeUnit.MINUTES);
    Thread.sleep(Math.round(((Number) scenario.get("linger_s")).doubleValue() * 1000));
    long began = System.nanoTime();
    // The SDK's own callbacks say when all have been sent: flush() returns at once, and shutdown() waits for a second only.
    if ((Boolean) scenario.get("wait")) {
      for (Analytics client : clients) client.flush();
      while (told.get() < calls.size() * clients.size()) Thread.sleep(10);
    }
    for (Analytics client : clients) client.shutdown();
    Map<String, Object> result = new TreeMap<>();
    result.put("failed", failed);
    result.put("refused", refused);
    result.put("shutdown_s", (System.nanoTime() - began) / 1e9);
    System.out.println(gson.toJson(result));
    System.exit(0);
  }

  static int number(Map<String, Object> from, String name) {
    return ((Number) from.get(name)).intValue();
  }

  static Analytics client(Map<String, Object> scenario, String url) {
    return Analytics.builder((String) scenario.get("key"))
        .endpoint(url) // segment
        .setDataPlaneUrl(url).setGZIP((Boolean) scenario.get("gzip")) // rudder
        .flushQueueSize(number(scenario, "batch"))
        .flushInterval(1, TimeUnit.SECONDS)
        .callback(new Callback() {
          public void success(Message message) {
            told.incrementAndGet();
          }

          public void failure(Message message, Throwable error) {
            failed.add(message.messageId());
            told.incrementAndGet();
            System.err.println(message.messageId() + ": " + error);
          }
        })
        .build();
  }

  @SuppressWarnings("unchecked")
  static MessageBuilder<?, ?> message(Map<String, Object> call) {
    Map<String, Object> properties = (Map<String, Object>) call.get("properties");
    Map<String, Object> traits = (Map<String, Object>) call.get("traits");
    String name = (String) call.get("name"), category = (String) call.get("category");
    MessageBuilder<?, ?> builder;
    switch ((String) call.get("type")) {
      case "identify": builder = IdentifyMessage.builder().traits(traits); break;
      case "track": builder = TrackMessage.builder((String) call.get("event")).properties(properties); break;
      case "page": builder = category == null ? PageMessage.builder(name).properties(properties)
          : PageMessage.builder(name).category(category).properties(properties); break;
      case "screen": builder = ScreenMessage.builder(name).properties(properties); break;
      case "group": builder = GroupMessage.builder((String) call.get("groupId")).traits(traits); break;
      case "alias": builder = AliasMessage.builder((String) call.get("previousId")); break;
      default: throw new IllegalArgumentException("unknown call " + call.get("type"));
    }
    builder.userId((String) call.get("userId")).messageId((String) call.get("messageId"));
    builder.timestamp(Date.from(Instant.parse((String) call.get("timestamp"))));
    if (call.get("context") != null) builder.context((Map<String, ?>) call.get("context"));
    return builder;
  }
}
