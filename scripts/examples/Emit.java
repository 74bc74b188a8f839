// Starts a job with Apache Kafka's own client: one record, nothing of Tollgate's.
// TOLLGATE_TOKEN=... java -cp 'kafka-clients.jar:slf4j-api.jar' Emit.java localhost:9092 reports/nightly '{"region":"eu"}'

import java.util.Map;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

public class Emit {
    public static void main(String[] args) throws Exception {
        String topic = System.getenv().getOrDefault("TOLLGATE_PREFIX", "tollgate.") + "triggers";
        var trigger = new ProducerRecord<String, String>(topic, args[2]);
        trigger.headers().add("authorization", ("Bearer " + System.getenv("TOLLGATE_TOKEN")).getBytes());
        trigger.headers().add("tollgate-job", args[1].getBytes());
        Map<String, Object> settings = Map.of("bootstrap.servers", args[0], "acks", "all");
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            var sent = producer.send(trigger).get();
            System.out.println(sent.partition() + "-" + sent.offset()); // the trigger's id: its receipt is found by it
        }
    }
}
